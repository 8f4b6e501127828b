"""One look at the registry: what it names is checked, fetched beside what runs, proved on this machine, switched to."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedgraft.device.agent.device_folder import PROVING_PREDICTIONS, DeviceFolder, DeviceState
from fedgraft.device.agent.download import Download
from fedgraft.device.agent.messages import number, one_line
from fedgraft.device.agent.metadata import BANK, BUNDLE, Channel, Release, Seen, Trust, accepted_channel, check_fresh
from fedgraft.device.agent.registry_client import Registry, Unreachable
from fedgraft.device.bundle import open_bundle
from fedgraft.device.class_bank import check_labels
from fedgraft.device.errors import BundleError, DeviceError
from fedgraft.device.manifest import LABELS
from fedgraft.device.predictor import Predictor
from fedgraft.device.self_test import SelfTest

_LONGEST_PAUSE = 7 * 86400.0
_TRIES = 3
"""A release whose self test was begun so often without a result, as by a process that was killed, has failed."""


@dataclass(frozen=True)
class Looked:
    """What came of a look.

    Attributes:
        installed: the version that was switched to, or None.
        moved: bytes of files that were fetched.
        problem: why what the registry names is not taken, or "".
        next_seconds: when the registry wants to be asked again; None where it does not say.
    """

    installed: int | None = None
    moved: int = 0
    problem: str = ""
    next_seconds: float | None = None


def look(
    folder: DeviceFolder, registry: Registry, clock: Callable[[], float] = time.time, thorough: bool = False
) -> Looked:
    """Ask the registry once, and take what it has for this device.

    A document or file that is not as it was signed leaves the device as it is, with the problem in the answer.

    Args:
        thorough: whether the files of the release that runs are checked, and fetched again where the disk damaged them.

    Raises:
        Unreachable: the registry does not answer.
        Refused: it does not know this device.
    """
    state = folder.state()
    known = state.seen.get(state.channel)
    answer = registry.check(
        {
            "trust": int(state.trust["version"]),
            "channel": state.channel,
            "sequence": -1 if known is None else known.sequence,
            "current": state.current,
            "refused": sorted(state.refused),
        }
    )
    pause = number(answer, "next_seconds", _LONGEST_PAUSE) if answer.get("next_seconds") is not None else None
    download = Download(folder, registry)
    try:
        state, channel = _believed(folder, state, answer, clock())
        if channel is None:
            return Looked(next_seconds=pause)
        target = answer.get("target")
        if not isinstance(target, str) or not target or target in state.refused:
            return Looked(next_seconds=pause)
        if target == state.current:
            if thorough:
                download.fetch(channel.release(target))
            return Looked(moved=download.moved, next_seconds=pause)
        release = channel.release(target)
        _check_version(release, state, channel)
        download.fetch(release)
        if not folder.begin(release.id, _TRIES):
            raise _Failed(release, f"its self test was begun {_TRIES} times and never ended")
        try:
            tested = self_test(folder, release)
        except DeviceError as error:
            raise _Failed(release, one_line(error)) from error
        folder.switch(release, PROVING_PREDICTIONS, tested.warning)
        kept = {release.id, state.current, folder.state().good} - {""}
        folder.tidy(kept)
        return Looked(release.version, download.moved, next_seconds=pause)
    except _Failed as failed:
        folder.refuse(failed.release.id, failed.reason)
        return Looked(moved=download.moved, problem=str(failed), next_seconds=pause)
    except Unreachable:
        raise
    except DeviceError as error:
        return Looked(moved=download.moved, problem=str(error), next_seconds=pause)


def first_state(answer: dict[str, Any], fingerprint: str) -> DeviceState:
    """A device's state after enrolment.

    Args:
        answer: the registry's, with the fleet's trust documents.
        fingerprint: the beginning of the SHA-256 of one of them, from the token; later ones must follow it.

    Raises:
        DeviceError: no document has the fingerprint, or one does not follow the other.
    """
    documents = answer.get("trust")
    if not isinstance(documents, list) or not documents or len(documents) > 1000:
        raise DeviceError("The registry's answer has no trust documents.")
    trusts = [Trust.parse(document) for document in documents]
    first = next((n for n, trust in enumerate(trusts) if trust.fingerprint.startswith(fingerprint)), None)
    if first is None:
        raise DeviceError(
            "The registry names other publishers than the token was made for: it is not the registry of this fleet, or "
            "its publishers were changed without a signature."
        )
    trust = trusts[first]
    for document in documents[first + 1 :]:
        trust = trust.successor(document)
    device, channel = answer.get("device"), answer.get("channel")
    if not isinstance(device, str) or not isinstance(channel, str):
        raise DeviceError("The registry's answer has no device and no channel.")
    return DeviceState(fleet=trust.fleet, device=device, channel=channel, trust=trust.content())


def self_test(folder: DeviceFolder, release: Release) -> SelfTest:
    """Open a release that was fetched and compare its golden images.

    Raises:
        BundleError: a signature, a file, the class bank or a golden image is not as it should be.
    """
    bundle = open_bundle(folder.release(release.id) / BUNDLE, bytes.fromhex(release.signer))
    for name in bundle.manifest.files:
        bundle.read(name)
    predictor = Predictor(bundle, threads=1, spinning=False, remember=False)
    version = bundle.manifest.version
    opened = [bundle]
    if release.bank_signer:
        bank = open_bundle(folder.release(release.id) / BANK, bytes.fromhex(release.bank_signer))
        opened.append(bank)
        predictor.swap_classes(bank.path)
        version = bank.manifest.version
    if version != release.version:
        raise BundleError(f"The release {release.id[:12]} has version {version}, not {release.version} as was signed.")
    for each in opened:
        labels = check_labels(each.read_json(LABELS)["labels"])
        if marked := next((label for label in labels if set("<>") & set(label)), None):
            raise BundleError(f"The label {marked[:40]!r} has < or >, which a page would take for HTML.")
    return predictor.tested()


class _Failed(DeviceError):
    """A release that is not for this device, now and later."""

    def __init__(self, release: Release, reason: str) -> None:
        super().__init__(f"Version {release.version} is not taken: {reason}")
        self.release, self.reason = release, reason


def _believed(
    folder: DeviceFolder, state: DeviceState, answer: dict[str, Any], now: float
) -> tuple[DeviceState, Channel | None]:
    """The state after the documents of an answer, and the channel's newest; None where nothing was published yet."""
    trust = Trust.parse({"signed": state.trust, "signatures": []})
    documents = answer.get("trust", [])
    if not isinstance(documents, list) or len(documents) > 1000:
        raise DeviceError("The registry's answer has no list of trust documents.")
    for document in documents:
        trust = trust.successor(document)
    name = answer.get("channel", state.channel)
    if not isinstance(name, str):
        raise DeviceError("The registry's answer names no channel.")
    document, kept = answer.get("document"), folder.read_json("channel.json")
    if document is None and name == state.channel:
        document = kept
    if document is None:
        if kept is not None:  # a move to a channel without releases is no way to hide that the old one is stale
            check_fresh(Channel.parse(kept), max(now, state.latest))
        return state, None
    channel = accepted_channel(document, name, trust, state.seen, max(now, state.latest))
    folder.write_json("channel.json", document)
    seen = {**state.seen, name: Seen(channel.sequence, channel.digest)}
    with folder.locked():
        now_known = folder.state()
        offered = {release.id for release in channel.releases}
        changed = replace(
            now_known,
            trust=trust.content(),
            channel=name,
            seen=seen,
            latest=max(state.latest, channel.made),
            refused={id: reason for id, reason in now_known.refused.items() if id in offered},
        )
        if asdict(changed) != asdict(state):
            folder.write_state(changed)
    return changed, channel


def _check_version(release: Release, state: DeviceState, channel: Channel) -> None:
    """Raise DeviceError where a device would go back without a signed withdrawal of what it has run."""
    if release.version > state.floor_version or release.id == state.floor_id:
        return
    if release.version == state.floor_version:
        raise DeviceError(
            f"The registry offers another release of version {release.version} than this device has run; a change "
            "needs a higher version."
        )
    if state.floor_version not in channel.withdrawn:
        raise DeviceError(
            f"The registry offers version {release.version}, and this device has run version {state.floor_version}, "
            "which no publisher has withdrawn; a device never goes back."
        )
