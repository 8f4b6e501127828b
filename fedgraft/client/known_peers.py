"""Whose keys of a round a deployed site masks with: those that the sites in its file `peers` have signed."""

import logging
from collections.abc import Mapping

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.core.plain_text import plain
from fedgraft.core.refusals import Refusal, refusing
from fedgraft.methods.plan import Plan
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import Peers, read_peers
from fedgraft.strategies.secagg.keys import PublicKeys
from fedgraft.strategies.secagg.protocol import Keys
from fedgraft.strategies.secagg.statements import Statement, is_signed, signed_statement

_log = logging.getLogger("fedgraft.worker")


class KnownPeers:
    """Signs a site's own keys and checks those of others; files are read anew each time, so edits take effect."""

    def __init__(self, site: SiteFolder) -> None:
        self._site, self._told = site, False

    def require_acceptable(self, plan: Plan) -> None:
        """Raise Refusal for a run in which an update would leave otherwise than `require_known_peers` allows."""
        if not self._site.settings.policy.require_known_peers or not plan.method.trains:
            return
        if plan.composition.rule.summed() is None:
            raise Refusal("peers", "the site's policy accepts secure aggregation alone, with the sites that it knows")
        if self._listed() is None:
            raise Refusal("peers", "the site's policy accepts sums with sites that it knows, and it knows none yet")

    def signed(self, site: int, keys: PublicKeys, place: bytes) -> Statement:
        """The site's statement about its keys of a round."""
        with refusing("disk"):
            key = serialization.load_ssh_private_key(self._site.private_key.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return signed_statement(key, self._site.settings.name, site, keys, place)

    def check(self, site: int, keys: Keys, statements: Mapping[int, Statement], place: bytes) -> None:
        """Check the keys of all other sites of a round; without a list of peers, log that they are unchecked.

        Raises:
            Refusal: one is not signed by a site in the list, or two are of the same.
        """
        if (peers := self._listed()) is None:
            if not self._told:
                _log.warning("other sites' keys in masked sums are not checked: there is no file %s", self._site.peers)
            self._told = True
            return
        numbers: dict[str, int] = {}
        for number in sorted(keys):
            if number == site:
                continue
            statement = statements.get(number, Statement())
            name = plain(statement.name, 64)
            if not statement.signature:
                raise Refusal("peers", f"the keys of site {number} are not signed")
            if statement.name not in peers:
                raise Refusal("peers", f"site {number} is {name!r}, which this site does not know")
            if statement.name in numbers:
                raise Refusal("peers", f"sites {numbers[statement.name]} and {number} are both {name!r}")
            if not is_signed(statement, peers[statement.name], number, keys[number], place):
                raise Refusal("peers", f"the keys of site {number} are not those that {name!r} has for this round")
            numbers[statement.name] = number

    def _listed(self) -> Peers | None:
        with refusing("disk"):
            return read_peers(self._site)
