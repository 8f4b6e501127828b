"""A server that lies about whose keys it passes on gets no masked vector of a site that knows its peers."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fedgraft.backbones import Backbone
from fedgraft.client.known_peers import KnownPeers
from fedgraft.core.errors import UserError
from fedgraft.core.refusals import Refusal, code_of
from fedgraft.runs.key_rotation import new_key_pair
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import exchange_keys, own_keys
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.keys import SiteSecrets
from fedgraft.strategies.secagg.statements import Statement
from tests.client.sum_server import CONFIG, SITE, SumServer

NAMES = {0: "east", 1: "south", 3: "west"}


class _Federation(SumServer):
    """Four real sites, each with its key, whose statements the server passes on."""

    def __init__(self, site: SiteFolder, scratch: Path, mini: Backbone) -> None:
        super().__init__(site, scratch, mini)
        self.folders = {number: SiteFolder.create(scratch / name, name) for number, name in NAMES.items()}
        exchange_keys([site, *self.folders.values()])
        self.sign()

    def sign(self) -> None:
        """The statements of all sites about their keys of the round."""
        self.statements = {number: self.statement(number) for number in NAMES}

    def statement(self, number: int, secrets: SiteSecrets | None = None, site: int | None = None) -> Statement:
        """What a site says about keys, by default its own, as the site of a number, by default its own."""
        keys = (secrets or self.others[number]).public()
        return KnownPeers(self.folders[number]).signed(number if site is None else site, keys, self.place)


@pytest.fixture
def server(tmp_path: Path, site: SiteFolder, mini: Backbone) -> _Federation:
    """An honest server to begin with."""
    return _Federation(site, tmp_path, mini)


def test_a_site_masks_with_sites_that_it_knows(server: _Federation) -> None:
    sealed = records.sealed_record(server.begin())
    assert isinstance(server.stage(records.masked_request([0, 1, 2, 3]), sealed=sealed), RecordDict)


def test_the_others_know_the_sites_own_keys(server: _Federation, site: SiteFolder) -> None:
    server.begin()
    known = KnownPeers(server.folders[0])
    keys, statements = server.keys, {**server.statements, SITE: server.said}
    known.check(0, keys, statements, server.place)
    with pytest.raises(Refusal, match="site 2 are not those that 'north' has for this round"):
        known.check(0, {**keys, SITE: SiteSecrets().public()}, statements, server.place)


def _invents_sites(server: _Federation) -> None:
    invented = SiteFolder.create(server.folders[0].path.parent / "invented", "invented")
    server.statements = {
        number: KnownPeers(invented).signed(number, server.others[number].public(), server.place) for number in NAMES
    }


def _invents_one_without_a_signature(server: _Federation) -> None:
    server.statements = {**server.statements, 3: Statement()}


def _replaces_a_key(server: _Federation) -> None:
    server.others[3] = SiteSecrets()


def _signs_a_replaced_key_itself(server: _Federation) -> None:
    server.others[3] = SiteSecrets()
    own = SiteFolder.create(server.folders[0].path.parent / "own-west", "west")
    server.statements = {
        **server.statements, 3: KnownPeers(own).signed(3, server.others[3].public(), server.place)
    }  # fmt: skip


def _replays_an_earlier_round(server: _Federation) -> None:
    server.job = replace(server.job, round=2)
    server.statements = {**{number: server.statement(number) for number in NAMES}, 3: server.statements[3]}


def _replays_an_earlier_start(server: _Federation) -> None:
    server.job = replace(server.job, attempt=2)
    server.statements = {**{number: server.statement(number) for number in NAMES}, 3: server.statements[3]}


def _gives_a_site_two_numbers(server: _Federation) -> None:
    server.statements = {**server.statements, 3: server.statement(1, server.others[3], site=3)}


def _swaps_two_numbers(server: _Federation) -> None:
    server.others[1], server.others[3] = server.others[3], server.others[1]
    server.statements = {**server.statements, 1: server.statements[3], 3: server.statements[1]}


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        (_invents_sites, "site 0 is 'invented', which this site does not know"),
        (_invents_one_without_a_signature, "the keys of site 3 are not signed"),
        (_replaces_a_key, "the keys of site 3 are not those that 'west' has for this round"),
        (_signs_a_replaced_key_itself, "the keys of site 3 are not those that 'west' has for this round"),
        (_replays_an_earlier_round, "the keys of site 3 are not those that 'west' has for this round"),
        (_replays_an_earlier_start, "the keys of site 3 are not those that 'west' has for this round"),
        (_gives_a_site_two_numbers, "sites 1 and 3 are both 'south'"),
        (_swaps_two_numbers, "the keys of site 1 are not those that 'west' has for this round"),
    ],
)
def test_a_server_that_lies_about_keys_gets_one_line_with_one_code(
    lies: Callable[[_Federation], None], said: str, server: _Federation
) -> None:
    lies(server)
    answer = server.shares()
    assert answer == f"{said} (peers)"
    assert code_of(answer) == "peers"


def test_a_site_never_masks_with_one_that_has_its_own_name(server: _Federation, site: SiteFolder) -> None:
    server.statements = {
        **server.statements, 3: KnownPeers(site).signed(3, server.others[3].public(), server.place)
    }  # fmt: skip
    assert server.shares() == "site 3 is 'north', which this site does not know (peers)"


def test_a_name_that_a_server_makes_up_is_shown_without_control_characters(server: _Federation) -> None:
    server.statements = {**server.statements, 3: Statement("west\n\x1b[2J<b>", b"signature")}
    assert server.shares() == "site 3 is 'west (2J(b)', which this site does not know (peers)"


@pytest.mark.parametrize("statement", [Statement("w" * 65, b""), Statement("west", bytes(161))])
def test_a_name_or_a_signature_that_is_too_long_is_not_read(statement: Statement, server: _Federation) -> None:
    server.statements = {**server.statements, 3: statement}
    assert server.shares() == "the server's message has no valid content for secure aggregation"


def test_both_keys_of_a_peer_count_while_it_exchanges_them(server: _Federation, site: SiteFolder) -> None:
    west = server.folders[3]
    new_key_pair(west)
    exchange_keys([site, *server.folders.values()])
    assert len(own_keys(west)) == 2
    assert isinstance(server.shares(), RecordDict)
    server.job = replace(server.job, round=2)
    (west.path / "keys" / "new" / "site").replace(west.private_key)
    server.sign()
    assert isinstance(server.shares(), RecordDict)


def test_a_peer_that_is_taken_out_of_the_file_is_unknown_from_the_next_message_on(
    server: _Federation, site: SiteFolder
) -> None:
    assert isinstance(server.shares(), RecordDict)
    site.peers.write_text("".join(line for line in site.peers.open() if "west" not in line))
    server.job = replace(server.job, round=2)
    server.sign()
    assert server.shares() == "site 3 is 'west', which this site does not know (peers)"


def test_a_damaged_file_of_peers_stops_the_site_and_its_text_stays_there(server: _Federation, site: SiteFolder) -> None:
    site.peers.write_text("ssh-rsa secret west\n")
    answer = server.shares()
    assert code_of(str(answer)) == "disk"
    assert "secret" not in str(answer)


def test_without_a_list_a_site_masks_with_any_key_and_says_so_once(
    server: _Federation, site: SiteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    site.peers.unlink()
    _invents_sites(server)
    with caplog.at_level(logging.WARNING, "fedgraft.worker"):
        for number in (1, 2):
            server.job = replace(server.job, round=number)
            assert isinstance(server.shares(), RecordDict)
    (said,) = [record.message for record in caplog.records if "not checked" in record.message]
    assert said == f"other sites' keys in masked sums are not checked: there is no file {site.peers}"


@pytest.fixture
def requiring(server: _Federation, site: SiteFolder, tmp_path: Path, mini: Backbone) -> Callable[[str], SumServer]:
    """A server with a strategy, whose site lets updates leave in masked sums with known peers only."""
    policy = site.settings.policy.model_copy(update={"require_known_peers": True})
    careful = replace(site, settings=site.settings.model_copy(update={"policy": policy}))
    return lambda strategy: SumServer(careful, tmp_path, mini, CONFIG.model_copy(update={"strategy": strategy}))


def test_a_site_that_requires_peers_trains_for_no_run_without_secure_aggregation(
    requiring: Callable[[str], SumServer],
) -> None:
    assert isinstance(requiring("secagg").train(), RecordDict)
    for strategy in ("", "fedavg", "local-dp"):
        with pytest.raises(UserError, match=r"secure aggregation alone, with the sites that it knows \(peers\)"):
            requiring(strategy).train()


def test_a_site_that_requires_peers_trains_for_no_run_while_it_has_no_list(
    requiring: Callable[[str], SumServer], site: SiteFolder
) -> None:
    site.peers.unlink()
    with pytest.raises(UserError, match=r"sums with sites that it knows, and it knows none yet \(peers\)"):
        requiring("secagg").train()
