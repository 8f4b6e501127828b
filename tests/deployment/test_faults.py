"""Whatever becomes of messages, workers and servers: a run ends with the metrics of the undisturbed one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.in_process import MISHAPS, InProcessGrid, run_to_the_end
from fedgraft.client.folder import SiteFolder
from fedgraft.client.relay import from_bytes, to_bytes
from fedgraft.client.state import PersonalState
from fedgraft.config import RunConfig
from fedgraft.messages import SHARED, to_array_record
from fedgraft.server.run_directory import RunDirectory

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", class_names=NAMES, sites=2, rounds=4, local_epochs=1,
    resend_seconds=0.05, method_options={"n_ctx": 2, "rank": 2},
)  # fmt: skip


@pytest.fixture(scope="module")
def deploy(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, list[SiteFolder]]]:
    """Makes a folder with two fresh sites that have images of their own."""

    def fresh() -> tuple[Path, list[SiteFolder]]:
        root = tmp_path_factory.mktemp("deployment")
        sites = []
        for number, name in enumerate(("north", "south")):
            for folder in images.iterdir():
                (root / name / folder.name).mkdir(parents=True)
                for file in sorted(folder.iterdir())[number::2]:
                    shutil.copy(file, root / name / folder.name)
            sites.append(SiteFolder.create(root / f"site-{name}", name, root / name))
        return root, sites

    return fresh


Outcome = tuple[dict[str, float], dict[str, np.ndarray], list[dict[str, np.ndarray]]]


def _outcome(out: Path, sites: list[SiteFolder], metrics: dict[str, float]) -> Outcome:
    """Metrics, shared parameters and each site's personal ones after the last round."""
    checkpoint = RunDirectory(out).newest_checkpoint(0, RunDirectory(out).summary()["fingerprint"])
    assert checkpoint is not None
    assert checkpoint.round == CONFIG.rounds
    personal = []
    for site in sites:
        (folder,) = site.state.glob("*/000")
        state = PersonalState(folder, _identity(out))
        loaded = state.load(CONFIG.rounds)
        assert loaded is not None
        personal.append({name: tensor.numpy() for name, tensor in loaded.items()})
    return metrics, checkpoint.arrays, personal


def _identity(out: Path) -> dict[str, str]:
    summary = RunDirectory(out).summary()
    return {"method": summary["method"], "fingerprint": summary["fingerprint"]}


def _run(deploy: Callable[[], tuple[Path, list[SiteFolder]]], seed: int, mishaps: dict[str, float]) -> tuple:
    root, sites = deploy()
    grid = InProcessGrid(sites, seed, mishaps)
    summary = run_to_the_end(CONFIG, root / "run", grid)
    grid.close()
    return _outcome(root / "run", sites, summary["metrics"]), grid.happened


@pytest.fixture(scope="module")
def undisturbed(deploy: Callable[[], tuple[Path, list[SiteFolder]]]) -> Outcome:
    """What the run gives when nothing happens."""
    outcome, happened = _run(deploy, 0, {})
    assert happened == []
    return outcome


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mishap", [*MISHAPS, "all of them"])
def test_a_disturbed_run_ends_as_the_undisturbed_one(
    mishap: str, seed: int, deploy: Callable[[], tuple[Path, list[SiteFolder]]], undisturbed: Outcome
) -> None:
    often = 0.15 if mishap == "server killed" else 0.3
    mishaps = dict.fromkeys(MISHAPS, 0.06) if mishap == "all of them" else {mishap: often}
    (metrics, shared, personal), happened = _run(deploy, seed, mishaps)
    assert happened, "the schedule has no mishap in it; choose another seed"
    assert metrics == undisturbed[0]
    assert _same(shared, undisturbed[1])
    assert all(_same(mine, other) for mine, other in zip(personal, undisturbed[2], strict=True))


def _poison(arrays: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    changed = {
        "nan": lambda array: np.full_like(array, np.nan),
        "infinity": lambda array: np.full_like(array, np.inf),
        "shape": lambda array: array[..., :-1],
        "huge": lambda array: array + 1000 * np.linalg.norm(array),
        "100 MB": lambda array: np.zeros(25 * 2**20, np.float32),
        "names": lambda array: array,
    }[how]
    return {("other" if how == "names" else name): changed(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "sigma has values that are not finite"),
        ("infinity", "sigma has values that are not finite"),
        ("shape", "sigma has shape (1, 2, 127) instead of (1, 2, 128)"),
        ("100 MB", "sigma has shape (26214400,) instead of (1, 2, 128)"),
        ("names", "parameters ['other'] instead of ['sigma']"),
    ],
)
def test_a_bad_update_is_left_out_by_name_and_the_run_goes_on(
    how: str, said: str, deploy: Callable[[], tuple[Path, list[SiteFolder]]]
) -> None:
    root, sites = deploy()

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        if kind != "train" or node != 71:
            return answer
        content = from_bytes(answer)
        name = next(name for name in content.array_records if name.endswith(SHARED))
        arrays = {key: array.numpy() for key, array in content.array_records[name].items()}
        content[name] = to_array_record(_poison(arrays, how))
        return to_bytes(content)

    grid = InProcessGrid(sites, 0, {}, answering)
    summary = run_to_the_end(CONFIG.model_copy(update={"rounds": 1}), root / "run", grid)
    grid.close()
    rows = RunDirectory(root / "run").rows()
    assert [(row["site"], row["reason"]) for row in rows if row["scope"] == "left_out"] == [(1, said)]
    assert [row["sites"] for row in rows if row["scope"] == "train"] == [[0]]
    assert summary["left_out"] == 1
    assert np.isfinite(RunDirectory(root / "run").newest_checkpoint(0, summary["fingerprint"]).arrays["sigma"]).all()
