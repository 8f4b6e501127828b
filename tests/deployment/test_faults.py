"""Whatever becomes of messages, workers and servers: a run ends with the metrics of the undisturbed one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.edge_export.trained_run import TrainedRun
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.testing.bad_updates import spoiled
from fedgraft.testing.in_process import FIRST_NODE, MISHAPS, InProcessGrid, outcome, run_to_the_end

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="fedpgp", data="folder:own", protocol="own-data", sites=2, rounds=4, local_epochs=1,
    resend_seconds=0.05, protocol_options={"class_names": NAMES}, method_options={"n_ctx": 2, "rank": 2},
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


def _run(
    deploy: Deploy, seed: int, mishaps: dict[str, float], config: RunConfig = CONFIG
) -> tuple[dict[str, Any], list[str]]:
    root, sites = deploy()
    with InProcessGrid(sites, seed, mishaps) as grid:
        summary = run_to_the_end(config, root / "run", grid)
    got = outcome(root / "run", sites)
    assert got["metrics"] == summary["metrics"]
    return got, grid.happened


@pytest.fixture(scope="module")
def undisturbed(deploy: Deploy) -> dict[str, Any]:
    """What the run gives when nothing happens."""
    got, happened = _run(deploy, 0, {})
    assert happened == []
    assert got["rounds"] == [[3, 4], [3, 4]]
    return got


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("mishap", [*MISHAPS, "all of them"])
def test_a_disturbed_run_ends_as_the_undisturbed_one(
    mishap: str, seed: int, deploy: Deploy, undisturbed: dict[str, Any]
) -> None:
    often = 0.15 if mishap == "server killed" else 0.3
    mishaps = dict.fromkeys(MISHAPS, 0.06) if mishap == "all of them" else {mishap: often}
    got, happened = _run(deploy, seed, mishaps)
    assert happened, "the schedule has no mishap in it; choose another seed"
    assert got == undisturbed


def test_sites_that_receive_parameters_of_their_own_receive_them_whatever_happens(deploy: Deploy) -> None:
    config = CONFIG.model_copy(update={"strategy": "similarity(self_weight=0.8)"})
    calm, _ = _run(deploy, 0, {}, config)
    disturbed, happened = _run(deploy, 0, dict.fromkeys(MISHAPS, 0.06), config)
    assert happened
    assert disturbed == calm
    assert calm["shared"]["0/0/sigma"] != calm["shared"]["0/1/sigma"]


@pytest.mark.parametrize("method", ["feddpa", "pfedmoap"])
def test_a_method_with_a_message_or_an_adapter_for_each_site_ends_alike(method: str, deploy: Deploy) -> None:
    config = CONFIG.model_copy(update={"method": method, "method_options": {}, "rounds": 2})
    calm, _ = _run(deploy, 0, {}, config)
    disturbed, happened = _run(deploy, 0, dict.fromkeys(MISHAPS, 0.1), config)
    assert happened
    assert disturbed == calm


def test_deployed_noise_has_a_secret_key_of_each_site(deploy: Deploy) -> None:
    """Noise that follows from the run's seed, which server and sites know, would protect nothing."""
    config = CONFIG.model_copy(update={"method": "dp-fpl", "rounds": 1})
    root, sites = deploy()
    with InProcessGrid(sites, 0, {}) as grid:
        privacy = run_to_the_end(config, root / "run", grid)["privacy"]
    assert privacy["local"]["releases"] > 0
    keys = [next(site.state.rglob("noise.key")).read_bytes() for site in sites]
    assert keys[0] != keys[1]
    one, other = (_run(deploy, 0, {}, config)[0]["personal"] for _ in range(2))
    assert one != other


def test_a_site_named_by_its_folder_alone_has_to_give_its_number_to_be_exported(deploy: Deploy) -> None:
    """Which mean is its own the folder does not tell, and any other would be another site's."""
    root, sites = deploy()
    config = CONFIG.model_copy(update={"strategy": "similarity", "rounds": 1})
    with InProcessGrid(sites, 0, {}) as grid:
        run_to_the_end(config, root / "run", grid)
    with pytest.raises(UserError, match="give it with --site NUMBER"):
        TrainedRun.open(root / "run", None, site_folder=sites[1].path).adapter()
    own = TrainedRun.open(root / "run", "1", site_folder=sites[1].path).adapter()
    checkpoint = RunDirectory(root / "run").checkpoints.newest(0, own.vocabulary.backbone.fingerprint)
    assert checkpoint is not None
    assert np.array_equal(own.shared()["sigma"].numpy(), checkpoint.state["0/1/sigma"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", "sigma has values that are not finite"),
        ("infinity", "sigma has values that are not finite"),
        ("shape", "sigma has shape (1, 2, 127) instead of (1, 2, 128)"),
        pytest.param("100 MB", "sigma has shape (26214400,) instead of (1, 2, 128)", marks=pytest.mark.slow),
        ("names", "parameters other instead of sigma"),
        ("examples", "its answer cannot be read: 'num-examples' is 1e+18, not from 1 to 18"),
    ],
)
def test_a_bad_update_is_left_out_by_name_and_the_run_goes_on(how: str, said: str, deploy: Deploy) -> None:
    root, sites = deploy()

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        return spoiled(answer, how) if kind == "train" and node == FIRST_NODE + 1 else answer

    with InProcessGrid(sites, 0, {}, answering) as grid:
        summary = run_to_the_end(CONFIG.model_copy(update={"rounds": 1}), root / "run", grid)
    directory = RunDirectory(root / "run")
    rows = directory.rows()
    assert [(row["site"], row["reason"]) for row in rows if row["scope"] == "left_out"] == [(1, said)]
    assert [row["sites"] for row in rows if row["scope"] == "train"] == [[0]]
    assert summary["left_out"] == 1
    checkpoint = directory.checkpoints.newest(0, summary["fingerprint"])
    assert checkpoint is not None
    assert np.isfinite(checkpoint.arrays["sigma"]).all()
