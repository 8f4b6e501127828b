"""When the gateway has last heard from each site, by the name in its certificate: contacts.json in the server's folder.

Times are seconds since the epoch. The file outlives the gateway, so that a site that is gone keeps its last time.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgraft.core.files import write_text

_FILE = "contacts.json"
_EVERY_SECONDS = 5.0
_RECEIVED, _ANSWERED = "confirm-message-received", "push-messages"
"""The methods of Flower's fleet interface by which a site confirms a message, and sends its answer."""


@dataclass
class Contact:
    """What is known of a site's connection.

    Attributes:
        seen: its last request.
        received: when it had last received a message completely.
        answered: when it last sent an answer.
        requests: how many it has made since the gateway was started.
    """

    seen: float = 0.0
    received: float = 0.0
    answered: float = 0.0
    requests: int = 0


class Contacts:
    """The contacts of a server's folder, kept by its gateway."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._of = read_contacts(folder)
        for contact in self._of.values():
            contact.requests = 0
        self._changed, self._written = False, 0.0

    def heard(self, name: str, method: str) -> None:
        """A site has made a request."""
        contact = self._of.setdefault(name, Contact())
        contact.seen, contact.requests = time.time(), contact.requests + 1
        if method == _RECEIVED:
            contact.received = contact.seen
        if method == _ANSWERED:
            contact.answered = contact.seen
        self._changed = True

    def write(self) -> None:
        """Write what has changed, every few seconds at most; a full disk is not an error."""
        if self._changed and time.monotonic() - self._written >= _EVERY_SECONDS:
            self._changed, self._written = False, time.monotonic()
            with suppress(OSError):
                write_text(self._path, json.dumps({name: asdict(contact) for name, contact in self._of.items()}))


def read_contacts(folder: Path) -> dict[str, Contact]:
    """The contacts of a server's folder by the site's name; none if there is no file that can be read."""
    try:
        return {name: Contact(**entry) for name, entry in json.loads((folder / _FILE).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
