"""Whatever becomes of messages, workers and servers: a run ends with the metrics of the undisturbed one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import Outcome, outcome
from benchmarks.faulty_worker import spoiled
from benchmarks.in_process import MISHAPS, InProcessGrid, run_to_the_end
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.config.run_config import RunConfig
from fedgraft.runs.run_directory import RunDirectory

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", class_names=NAMES, sites=2, rounds=4, local_epochs=1,
    resend_seconds=0.05, method_options={"n_ctx": 2, "rank": 2},
)  # fmt: skip


Deploy = Callable[[], tuple[Path, list[SiteFolder]]]


@pytest.fixture(scope="module")
def deploy(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Deploy:
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


def _run(deploy: Deploy, seed: int, mishaps: dict[str, float]) -> tuple[Outcome, list[str]]:
    root, sites = deploy()
    grid = InProcessGrid(sites, seed, mishaps)
    summary = run_to_the_end(CONFIG, root / "run", grid)
    grid.close()
    assert outcome(root / "run", sites)["metrics"] == summary["metrics"]
    return outcome(root / "run", sites), grid.happened


@pytest.fixture(scope="module")
def undisturbed(deploy: Deploy) -> Outcome:
    """What the run gives when nothing happens."""
    got, happened = _run(deploy, 0, {})
    assert happened == []
    assert got["rounds"] == [[3, 4], [3, 4]]
    return got


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mishap", [*MISHAPS, "all of them"])
def test_a_disturbed_run_ends_as_the_undisturbed_one(
    mishap: str, seed: int, deploy: Deploy, undisturbed: Outcome
) -> None:
    often = 0.15 if mishap == "server killed" else 0.3
    mishaps = dict.fromkeys(MISHAPS, 0.06) if mishap == "all of them" else {mishap: often}
    got, happened = _run(deploy, seed, mishaps)
    assert happened, "the schedule has no mishap in it; choose another seed"
    assert got == undisturbed


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
def test_a_bad_update_is_left_out_by_name_and_the_run_goes_on(how: str, said: str, deploy: Deploy) -> None:
    root, sites = deploy()

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        return spoiled(answer, how) if kind == "train" and node == 71 else answer

    grid = InProcessGrid(sites, 0, {}, answering)
    summary = run_to_the_end(CONFIG.model_copy(update={"rounds": 1}), root / "run", grid)
    grid.close()
    rows = RunDirectory(root / "run").rows()
    assert [(row["site"], row["reason"]) for row in rows if row["scope"] == "left_out"] == [(1, said)]
    assert [row["sites"] for row in rows if row["scope"] == "train"] == [[0]]
    assert summary["left_out"] == 1
    assert np.isfinite(RunDirectory(root / "run").newest_checkpoint(0, summary["fingerprint"]).arrays["sigma"]).all()
