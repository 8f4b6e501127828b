"""Lets the timed events of a schedule happen to a running federation."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

from benchmarks.fault_schedules import FOLLOWER_ENDED, Event
from benchmarks.federation import Federation, Member
from fedgraft.runs.run_directory import RunDirectory

_STOPPED_SECONDS, _AWAY_SECONDS = 8.0, 10.0


class Injector:
    """Strikes when the round of an event has come, its seconds have passed, and what it is to hit is there.

    Args:
        directory: of the run whose rounds count.
        end_follower: ends the command that follows the run, and starts it again.
    """

    def __init__(
        self, federation: Federation, directory: RunDirectory, events: Sequence[Event], end_follower: Callable[[], None]
    ) -> None:
        self._federation, self._directory = federation, directory
        self._waiting = list(events)
        self._began: dict[int, float] = {}
        self._stopped: list[tuple[int, float]] = []
        self._strikes: dict[str, Callable[[], bool]] = {
            "SuperLink killed": lambda: _killed([federation.server.processes["superlink"].pid]),
            "gateway killed": lambda: _killed([federation.server.processes["gateway"].pid]),
            "ServerApp killed": lambda: _killed(federation.server_apps()),
            "server restarted": _done(federation.restart_server),
            "server certificate rotated": _done(lambda: federation.folder.rotate([])),
            FOLLOWER_ENDED: _done(end_follower),
        }

    @property
    def never_happened(self) -> list[str]:
        """What found nothing to hit before the run was over."""
        return [event.what for event in self._waiting]

    def __call__(self) -> None:
        """Look whether it is time."""
        now = time.monotonic()
        if (self._directory.path / "sites.json").exists():
            self._began.setdefault(self._directory.checkpoints.newest_round() + 1, now)
        for event in list(self._waiting):
            began = [since for server_round, since in self._began.items() if server_round >= event.round]
            if began and now - min(began) >= event.seconds and self._strike(event):
                self._waiting.remove(event)
        for pid, until in list(self._stopped):
            if now >= until:
                self._stopped.remove((pid, until))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _strike(self, event: Event) -> bool:
        """Let it happen; False where what it is to hit is not there at the moment."""
        if event.what in self._strikes:
            return self._strikes[event.what]()
        member = self._federation.members[event.site]
        return member.running is not None and self._strike_site(event, member)

    def _strike_site(self, event: Event, member: Member) -> bool:
        site, federation = member.running, self._federation
        assert site is not None
        if event.what == "message process killed":
            return _killed(site.superexec.grandchildren() or [])
        if event.what.endswith(" killed"):
            process = {"worker": site.worker, "SuperNode": site.supernode, "SuperExec": site.superexec}
            return _killed([process[event.what.removesuffix(" killed")].pid])
        if event.what == "worker hung":
            os.kill(site.worker.pid, signal.SIGSTOP)
        elif event.what == "SuperNode stopped for 8 s":
            os.kill(site.supernode.pid, signal.SIGSTOP)
            self._stopped.append((site.supernode.pid, time.monotonic() + _STOPPED_SECONDS))
        elif event.what == "site restarted":
            federation.stop(event.site)
            federation.start(event.site)
        elif event.what == "site certificate renewed":
            federation.renew_certificate(event.site)
        elif event.what == "site key rotated":
            federation.rotate_key(event.site)
        else:
            assert event.what in ("connections dropped", "network away for 10 s"), event.what
            member.proxy.drop(0.0 if event.what == "connections dropped" else _AWAY_SECONDS)
        return True


def _done(action: Callable[[], None]) -> Callable[[], bool]:
    def strike() -> bool:
        action()
        return True

    return strike


def _killed(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)
