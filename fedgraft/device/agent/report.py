"""What a device tells its registry: version, health, counts; each count once, whatever is cut or killed in between."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fedgraft import __version__
from fedgraft.device.agent.device_folder import DeviceFolder, DeviceState
from fedgraft.device.agent.registry_client import Registry
from fedgraft.device.agent.tally import REFERENCE_PREDICTIONS, forget_taken, taken_tallies

_REPORT, _CONFIDENCE = "report.json", "confidence.json"


def send_report(folder: DeviceFolder, registry: Registry, clock: float, problem: str = "") -> None:
    """Send what is not reported yet; a report that was not acknowledged is sent again, under its number, before.

    Where nothing has changed and nothing was counted, nothing is sent and nothing is written.

    Args:
        clock: this device's, in seconds since 1970.
        problem: why the device does not run what its channel names; without one, what the self test of the release that
            runs has warned of is told.

    Raises:
        DeviceError: the registry does not answer, or refuses.
    """
    if (left := folder.read_json(_REPORT)) is not None:
        registry.report(left if folder.state().share_embeddings else _without_embeddings(left))
        _acknowledged(folder)
    if (report := _new_report(folder, clock, problem)) is not None:
        registry.report(report)
        _acknowledged(folder)


def _new_report(folder: DeviceFolder, clock: float, problem: str) -> dict[str, Any] | None:
    """A report with all that was counted, on the disk before the counts are given up; None if there is no news."""
    with folder.locked():
        tallies = taken_tallies(folder)
        state = folder.state()
        problem = problem or state.warnings.get(state.current, "")
        told = _news(state, problem)
        if not tallies and told == state.told:
            return None
        state = replace(state, serial=state.serial + 1, told=told)
        references = _references(folder, tallies)
        report = {
            "serial": state.serial,
            "release": state.current,
            "health": state.health,
            "proving": state.proving,
            "refused": {release: reason[:300] for release, reason in state.refused.items()},
            "tallies": {
                release: {**_shared(tally, state, release), "reference": references.get(release)}
                for release, tally in tallies.items()
            },
            "agent": __version__,
            "clock": int(clock),
            "problem": problem[:300],
        }
        folder.write_json(_REPORT, report)
        folder.write_state(state)
        forget_taken(folder)
    return report


def _news(state: DeviceState, problem: str) -> str:
    """What a report says beside counts, in short."""
    said = [state.current, state.health, state.proving == 0, sorted(state.refused.items()), problem, __version__]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _shared(tally: dict[str, Any], state: DeviceState, release: str) -> dict[str, Any]:
    """What a report has of a tally: embeddings only of the release that runs, and only if the owner shares them."""
    shared = [text for _, text in tally["embeddings"]] if release == state.current else []
    return {**tally, "embeddings": shared} if state.share_embeddings else _counts(tally)


def _without_embeddings(report: dict[str, Any]) -> dict[str, Any]:
    """A report of before its owner took the word back."""
    return {**report, "tallies": {release: _counts(tally) for release, tally in report["tallies"].items()}}


def _counts(tally: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tally.items() if key != "embeddings"}


def _acknowledged(folder: DeviceFolder) -> None:
    with suppress(FileNotFoundError):
        (folder.path / _REPORT).unlink()


def _references(folder: DeviceFolder, tallies: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The mean confidence of the first predictions of each release, once there are enough of them."""
    kept: dict[str, list[float]] = folder.read_json(_CONFIDENCE) or {}
    for release, tally in tallies.items():
        number, total = kept.get(release, (0, 0.0))
        if number < REFERENCE_PREDICTIONS:
            kept[release] = [number + tally["predictions"], total + tally["confidence"]]
    state: DeviceState = folder.state()
    kept = {release: entry for release, entry in kept.items() if release in {*tallies, state.current, state.good}}
    folder.write_json(_CONFIDENCE, kept)
    enough = {release: entry for release, entry in kept.items() if entry[0] >= REFERENCE_PREDICTIONS}
    return {release: total / number for release, (number, total) in enough.items()}
