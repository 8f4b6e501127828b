"""Secure aggregation over sites with workers of their own: who drops out when, and what server and sites keep."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.observer import Observer
from fedgraft.deployment.local import up
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import pack
from fedgraft.reports import write_report
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import exchange_keys, public_keys_in
from fedgraft.server.preparation import prepare
from fedgraft.strategies.secagg import records
from fedgraft.testing.in_process import FIRST_NODE, InProcessGrid, outcome, run_to_the_end

NAMES = ["blue circle", "green square", "red triangle"]
CONFIG = RunConfig(
    method="promptfl", data="folder:own", protocol="own-data", sites=4, rounds=2, local_epochs=1, strategy="secagg",
    resend_seconds=0.05, protocol_options={"class_names": NAMES}, method_options={"n_ctx": 2},
)  # fmt: skip
STAGES = ("train", "shares", "masked", "unmask")
Deploy = Callable[[], tuple[Path, list[SiteFolder]]]


@pytest.fixture(scope="module")
def deploy(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Deploy:
    """Makes a folder with four fresh sites."""

    def fresh() -> tuple[Path, list[SiteFolder]]:
        root = tmp_path_factory.mktemp("deployment")
        return root, [SiteFolder.create(root / f"site-{number}", f"site-{number}", images) for number in range(4)]

    return fresh


class _Dropping:
    """Sites whose answer to one stage of the first round does not arrive."""

    def __init__(self, gone: dict[int, str]) -> None:
        self._gone = gone
        self._stages: Counter[int] = Counter()

    def __call__(self, kind: str, node: int, answer: bytes) -> bytes:
        if kind in ("train", "secagg"):
            stage = self._stages[node]
            self._stages[node] += 1
            if stage < len(STAGES) and self._gone.get(node - FIRST_NODE) == STAGES[stage]:
                self._stages[node] = len(STAGES)
                raise UserError("gone")
        return answer


def _run(deploy: Deploy, gone: dict[int, str], mishaps: dict[str, float] | None = None, **changes: Any) -> Any:
    root, sites = deploy()
    with InProcessGrid(sites, 1, mishaps or {}, _Dropping(gone)) as grid:
        summary = run_to_the_end(CONFIG.model_copy(update=changes), root / "run", grid)
    rows = RunDirectory(root / "run").rows()
    counted = [row["sites"] for row in rows if row["scope"] == "train"]
    return outcome(root / "run", sites), counted, summary, grid.happened


@pytest.fixture(scope="module")
def undisturbed(deploy: Deploy) -> dict[str, Any]:
    """What the run gives when nothing happens."""
    got, counted, _, _ = _run(deploy, {})
    assert counted == [[0, 1, 2, 3]] * 2
    return got


def test_metrics_are_those_of_the_plain_mean(deploy: Deploy, undisturbed: dict[str, Any]) -> None:
    plain = _run(deploy, {}, strategy="fedavg")[0]
    assert undisturbed["metrics"] == pytest.approx(plain["metrics"], abs=3.0)  # one image of 36 is 2.8


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_may_drop_out_between_any_two_stages(stage: str, deploy: Deploy, undisturbed: dict[str, Any]) -> None:
    """Before its vector arrives it is left out; after that it counts, and the sum is the whole one, to the byte."""
    got, counted, _, _ = _run(deploy, {3: stage})
    if stage == "unmask":
        assert got == undisturbed
        return
    assert counted == [[0, 1, 2], [0, 1, 2, 3]]
    assert got["left_out"] == [(1, 3)]
    assert got["shared"] == _run(deploy, {3: "train"})[0]["shared"] != undisturbed["shared"]


@pytest.mark.parametrize("gone", [{2: "train", 3: "train"}, {2: "shares", 3: "masked"}, {2: "unmask", 3: "unmask"}])
def test_below_the_threshold_the_round_ends_with_one_line(gone: dict[int, str], deploy: Deploy) -> None:
    with pytest.raises(RunFailed, match=r"^Round 1 has 2 valid answers of 4, but the strategy needs 3\. site 2: gone"):
        _run(deploy, gone)


@pytest.mark.parametrize("mishap", ["lost message", "lost reply", "late copy", "crash", "server killed"])
def test_resent_messages_and_a_killed_server_change_nothing(
    mishap: str, deploy: Deploy, undisturbed: dict[str, Any]
) -> None:
    got, _, _, happened = _run(deploy, {}, {mishap: 0.1})
    assert happened, "the schedule has no mishap in it; choose another seed"
    assert got == undisturbed


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (records.masked_answer(b"short"), "its answer cannot be read: a value that is not"),
        (ConfigRecord({"vector": [1, 2]}), "its answer cannot be read: a value that is not"),
        (ConfigRecord({}), "its answer cannot be read: 'vector'"),
    ],
    ids=["short", "list", "missing"],
)
def test_a_masked_vector_that_is_none_is_left_out_and_the_round_goes_on(
    record: ConfigRecord, said: str, deploy: Deploy
) -> None:
    root, sites = deploy()

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        content = record_from_bytes(answer)
        spoil = node == FIRST_NODE + 3 and "vector" in content.config_records.get("3/secagg", ConfigRecord())
        return record_bytes(pack({3: RecordDict({records.SECAGG: record})})) if spoil else answer

    with InProcessGrid(sites, 1, {}, answering) as grid:
        run_to_the_end(CONFIG.model_copy(update={"rounds": 1}), root / "run", grid)
    (left_out,) = [row for row in RunDirectory(root / "run").rows() if row["scope"] == "left_out"]
    assert (left_out["site"], left_out["reason"][: len(said)]) == (3, said)


class _Spoiling:
    """A site that sends noise in place of its masked vector, from the first of some rounds to the last."""

    def __init__(self, first: int, last: int) -> None:
        self._rounds, self._round = range(first, last + 1), 0

    def __call__(self, kind: str, node: int, answer: bytes) -> bytes:
        if node != FIRST_NODE + 3 or kind not in ("train", "secagg"):
            return answer
        self._round += kind == "train"
        record = record_from_bytes(answer).config_records["3/secagg"]
        if "vector" not in record or self._round not in self._rounds:
            return answer
        noise = bytes(byte ^ 0xA5 for byte in bytes(record["vector"]))  # type: ignore[call-overload]
        return record_bytes(pack({3: RecordDict({records.SECAGG: records.masked_answer(noise)})}))


def test_a_spoilt_sum_leaves_the_parameters_as_they_are_and_the_run_goes_on(deploy: Deploy) -> None:
    root, sites = deploy()
    told = list[str]()
    observer = Observer()
    observer.on_notice = told.append  # type: ignore[method-assign]
    with InProcessGrid(sites, 1, {}, _Spoiling(1, 2)) as grid:
        coordinator = prepare(CONFIG.model_copy(update={"rounds": 3}), root / "run", False, observer)
        assert coordinator is not None
        begin = {name: array.tobytes() for name, array in coordinator.initial().items()}
        received = list[dict[str, bytes]]()
        train = coordinator.before_round

        def before_round(router: Any, server_round: int) -> bool:
            checkpoint = coordinator.directory.checkpoints.newest(0, coordinator.backbone.fingerprint)
            if checkpoint is not None:
                received.append({name: array.tobytes() for name, array in checkpoint.arrays.items()})
            return train(router, server_round)

        coordinator.before_round = before_round  # type: ignore[method-assign]
        coordinator.run(grid)
        coordinator.directory.unlock()
    rows = [row for row in RunDirectory(root / "run").rows() if row["scope"] == "train"]
    assert received == [begin, begin]
    assert outcome(root / "run", sites)["shared"] != begin
    assert ["loss" in row for row in rows] == [False, False, True]
    assert [row.get("unused") for row in rows] == ["a site's vector is not what an update can become"] * 2 + [None]
    assert [row["sites"] for row in rows] == [[0, 1, 2, 3]] * 3  # each sum was seen, and counts for privacy
    assert [one for one in told if one.startswith("Round")] == [
        f"Round {number} leaves the parameters as they are: a site's vector is not what an update can become."
        for number in (1, 2)
    ]
    assert write_report(root / "run").is_file()


def test_three_spoilt_sums_in_a_row_end_the_run_also_after_a_resume(deploy: Deploy) -> None:
    root, sites = deploy()
    config = CONFIG.model_copy(update={"rounds": 4})
    said = r"^Round 3 is the third in a row whose sum cannot be used: .* which of the sites 0, 1, 2, 3 spoils them"
    for spoiling in (_Spoiling(1, 4), _Spoiling(1, 1)):
        with InProcessGrid(sites, 1, {}, spoiling) as grid, pytest.raises(RunFailed, match=said):
            run_to_the_end(config, root / "run", grid)
    with InProcessGrid(sites, 1, {}, _Spoiling(2, 2)) as grid:
        run_to_the_end(config, root / "run", grid)
    rows = [row for row in RunDirectory(root / "run").rows() if row["scope"] == "train"]
    assert ["loss" in row for row in rows] == [False, False, True, False]


def test_distributed_noise_is_accounted_for_in_the_summary(deploy: Deploy) -> None:
    strategy = "secagg(noise_multiplier=4, clipping_norm=0.5)"
    _, _, summary, _ = _run(deploy, {3: "masked"}, strategy=strategy)
    privacy = summary["privacy"]
    assert (privacy["mechanism"], privacy["releases"]) == ("secagg", 2)
    assert 0 < privacy["epsilon"] < 2


def test_a_site_takes_part_in_no_sum_smaller_than_its_own_limit(deploy: Deploy) -> None:
    root, sites = deploy()
    policy = sites[0].settings.policy.model_copy(update={"smallest_sum": 4})
    careful = [replace(site, settings=site.settings.model_copy(update={"policy": policy})) for site in sites]
    with (
        InProcessGrid(careful, 1, {}) as grid,
        pytest.raises(RunFailed, match="may sum the updates of 3 sites, and this site's smallest_sum is 4"),
    ):
        run_to_the_end(CONFIG, root / "run", grid)
    shutil.rmtree(root)


def test_the_server_sees_no_update_no_count_and_no_loss_of_a_site(deploy: Deploy) -> None:
    root, sites = deploy()
    seen: list[bytes] = []

    def answering(kind: str, node: int, answer: bytes) -> bytes:
        if kind in ("train", "secagg"):
            seen.append(answer)
        return answer

    with InProcessGrid(sites, 1, {}, answering) as grid:
        run_to_the_end(CONFIG.model_copy(update={"rounds": 1}), root / "run", grid)
    assert len(seen) == 4 * len(sites)
    for name in (b"num-examples", b"loss", b"shared"):
        assert not any(name in answer for answer in seen)


@pytest.mark.slow
def test_three_sites_in_processes_of_their_own_reach_one_sum(images: Path, tmp_path: Path) -> None:
    settings = {
        "method": "promptfl", "sites": 3, "rounds": 1, "local_epochs": 1, "strategy": "secagg",
        "method_options": {"n_ctx": 2},
    }  # fmt: skip
    summary = up(images, settings, tmp_path / "up")
    (row,) = [row for row in RunDirectory(tmp_path / "up" / "run").rows() if row["scope"] == "train"]
    assert (row["sites"], row["num_examples"], row["clipped_sites"]) == ([0, 1, 2], 36 - 3 * 3, 0)
    assert summary["left_out"] == 0


def _forging(kind: str, node: int, answer: bytes) -> bytes:
    """A site that says of its keys what it did not sign."""
    if node != FIRST_NODE + 3 or kind != "train":
        return answer
    content = record_from_bytes(answer)
    content.config_records["3/secagg"]["signature"] = b"none"
    return record_bytes(content)


def test_sites_that_know_each_other_reach_the_same_sum(deploy: Deploy, undisturbed: dict[str, Any]) -> None:
    root, sites = deploy()
    exchange_keys(sites)
    with InProcessGrid(sites, 1, {}) as grid:
        run_to_the_end(CONFIG, root / "run", grid)
    assert outcome(root / "run", sites) == undisturbed


def test_a_site_that_forges_its_statement_is_left_out_where_the_server_knows_its_key(deploy: Deploy) -> None:
    root, sites = deploy()
    exchange_keys(sites)
    keys = {site.settings.name: site.public_key for site in sites}
    with InProcessGrid(sites, 1, {}, _forging) as grid:
        coordinator = prepare(CONFIG, root / "run", False, Observer())
        assert coordinator is not None
        coordinator.members.keys_of = lambda name: public_keys_in([keys[name]])
        coordinator.run(grid)
    rows = RunDirectory(root / "run").rows()
    assert [row["sites"] for row in rows if row["scope"] == "train"] == [[0, 1, 2]] * 2
    reasons = {(row["site"], row["reason"]) for row in rows if row["scope"] == "left_out"}
    assert reasons == {(3, "its keys of the round are not signed with its admitted key")}


def test_a_site_that_nobody_knows_ends_the_round_with_its_name(deploy: Deploy) -> None:
    root, sites = deploy()
    exchange_keys(sites[:3])
    with (
        InProcessGrid(sites, 1, {}) as grid,
        pytest.raises(RunFailed, match=r"site 0: site 3 is 'site-3', which this site does not know \(peers\); site 1"),
    ):
        run_to_the_end(CONFIG, root / "run", grid)
