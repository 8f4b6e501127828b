"""Who takes part in a deployed run: sites are greeted, join, come back and leave, and sites.json records them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flwr.app import RecordDict

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.core.observer import Observer
from fedgraft.data.split import Split
from fedgraft.flower.messages import JOB, Job
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.greeting import Greeting, Names
from fedgraft.server.hello import Hello, read_hello
from fedgraft.server.router import Router
from fedgraft.server.site_bounds import ToldBounds
from fedgraft.strategies.secagg.keys import PublicKeys
from fedgraft.strategies.secagg.statements import SigningKey, Statement, is_signed


class Membership:
    """The sites of a run, over all its rounds and starts.

    Attributes:
        admitted: the names of the sites that the operator admits, where there is a list of them.
        keys_of: the keys that the operator admits a site by; None where there is no list.
        names: of the sites that took part, by number.
        bounds: how many images the sites have said that they have.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory, split: Split, observer: Observer) -> None:
        self._config, self._directory, self._observer = config, directory, observer
        self._class_names = split.class_names
        self.admitted: Names = lambda: None
        self.keys_of: Callable[[str], list[SigningKey] | None] = lambda name: None
        self.bounds = ToldBounds(config, len(split.class_names))
        self.names: dict[int, str] = {}
        self._sites: dict[str, dict[str, Any]] = {}

    def greet(self, router: Router, job: Job) -> None:
        """Wait for the sites and record them in sites.json, so that a site keeps its number in a resumed run.

        Raises:
            RunFailed: no site takes part.
        """
        self._sites = self._directory.read_json("sites.json") or {}
        numbers = {name: entry["number"] for name, entry in self._sites.items()}
        away = [name for name, entry in self._sites.items() if entry.get("away")]
        router.dead = {numbers[name] for name in away}
        content = RecordDict({JOB: job.to_record()})
        least = max(1, round(self._config.quorum * self._config.sites))
        told = list[str]()

        def on_refused(reason: str) -> None:
            told.append(reason)
            self._refused(reason)

        greeting = router.greet(
            content, self._config.sites, numbers, least, away, self.admitted, on_refused, self._read_hello
        )
        if not greeting.hellos:
            reasons = (
                "; ".join(greeting.refused) or f"none has connected within {self._config.answer_seconds:.0f} seconds"
            )
            raise RunFailed(f"No site takes part: {reasons}.")
        for name in sorted(set(greeting.numbers) - set(greeting.hellos)):
            self._observer.on_notice(f"The site {name!r} took part before and has not connected.")
        self._record(router, replace(greeting, refused=[one for one in greeting.refused if one not in told]), "")

    def refresh(self, router: Router, server_round: int) -> None:
        """Let sites join, come back and leave before a round."""
        for number in router.left():
            self._observer.on_notice(f"Site {number} has left the federation; its admission was taken back.")
        greeting = router.refresh()
        for number in greeting.returned:
            self._observer.on_notice(f"Site {number} is back and is asked again from round {server_round} on.")
        self._record(router, greeting, f", from round {server_round} on")

    def is_own(self, number: int, keys: PublicKeys, statement: Statement, place: bytes) -> bool:
        """Whether a site has signed its keys of a round, so that no other site will refuse them as a stranger's.

        True where the operator keeps no list of keys.
        """
        admitted = self.keys_of(self.names.get(number, ""))
        return admitted is None or is_signed(statement, admitted, number, keys, place)

    def _refused(self, reason: str) -> None:
        self._observer.on_notice(f"A site does not take part: {reason}.")

    def _record(self, router: Router, greeting: Greeting, since: str) -> None:
        """Report who takes part, and write sites.json if it changes."""
        for reason in greeting.refused:
            self._refused(reason)
        self.names |= {number: name for name, number in greeting.numbers.items()}
        entries = {name: {**self._sites.get(name, {}), "number": number} for name, number in greeting.numbers.items()}
        for name, hello in sorted(greeting.hellos.items(), key=lambda item: greeting.numbers[item[0]]):
            entries[name] |= {"version": hello.version, "fingerprint": hello.fingerprint}
            if hello.class_counts:
                entries[name]["images"] = hello.class_counts
            self.bounds.note(greeting.numbers[name], hello.images)
            self._observer.on_notice(f"Site {greeting.numbers[name]} is {name!r}{since}.")
        for entry in entries.values():
            entry.pop("away", None)
            if entry["number"] in router.dead:
                entry["away"] = True
        if entries != self._sites:
            self._sites = entries
            self._directory.write_json("sites.json", entries)

    def _read_hello(self, content: RecordDict, registered: str) -> Hello:
        return read_hello(content, registered, self._class_names, self._config.max_site_images)
