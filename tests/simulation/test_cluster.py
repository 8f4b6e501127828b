"""A Ray cluster of two nodes with a feature store each gives the run of one machine; mistakes are one sentence."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedgraft import Resources, RunConfig, UserError, simulate
from fedgraft.client.loaded_run import SimulatedRun
from fedgraft.core.observer import Observer
from fedgraft.data.sources.source import open_source
from fedgraft.methods.plan import Plan
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

pytestmark = pytest.mark.slow
CONFIG = RunConfig(data="digits", sites=4, rounds=2, shots=4, local_epochs=1, views=2, method_options={"n_ctx": 2})


@dataclass
class TwoNodes:
    """The cluster's address and the cache folder of each node."""

    address: str
    caches: list[Path]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """Two Ray nodes with one CPU each on this machine, as if they were two machines."""
    from ray.cluster_utils import Cluster

    caches = [tmp_path_factory.mktemp("cache-of-node") for _ in range(2)]
    cluster = Cluster()
    for cache in caches:
        cluster.add_node(num_cpus=1, env_vars={"FEDGRAFT_CACHE": str(cache)}, object_store_memory=100 * 1024 * 1024)
    yield TwoNodes(cluster.address, caches)
    cluster.shutdown()


def test_two_nodes_fill_a_store_each_and_give_the_metrics_of_one_machine(
    two_nodes: TwoNodes, engine: Engine, tmp_path: Path
) -> None:
    """Neither node reads the features that the server's process computed; the cluster serves a second run."""
    import ray

    resources = Resources(ray_address=two_nodes.address)
    local = simulate_on(engine, CONFIG, tmp_path / "local", False, Observer())
    clustered = simulate(CONFIG, tmp_path / "clustered", resources=resources)
    assert clustered["metrics"] == pytest.approx(local["metrics"], abs=1e-4)
    assert _losses(tmp_path / "clustered") == pytest.approx(_losses(tmp_path / "local"), rel=1e-5)
    sizes = {path.stat().st_size for cache in two_nodes.caches for path in cache.glob("features/*/keys.bin")}
    assert len([path for cache in two_nodes.caches for path in cache.glob("features/*/keys.bin")]) == 2
    assert len(sizes) == 1
    assert not ray.is_initialized()
    again = RunConfig.build({**CONFIG.model_dump(), "method": "zeroshot", "method_options": {}})
    zero = simulate(again, tmp_path / "again", resources=resources)
    assert zero["metrics"].keys() == local["metrics"].keys()


def test_a_node_with_other_images_is_named(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split's keys are compared before any image is computed under another's name."""
    simulate_on(engine, CONFIG, tmp_path / "run", False, Observer())
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(Plan, "open_examples", lambda plan: open_source("shapes:flat", 0))
    with pytest.raises(UserError, match=f"machine {socket.gethostname()} are not those of the server"):
        SimulatedRun(CONFIG, tmp_path / "run")


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for an answer that will not come."""
    monkeypatch.setattr("fedgraft.simulation.ray_engine._ANSWER_SECONDS", 0.5)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("address", "workers", "said"),
    [
        ("127.0.0.1:1", None, "No Ray cluster answers at 127.0.0.1:1"),
        ("127.0.0.1", None, "takes HOST:PORT"),
        ("127.0.0.1:1", 2, "give --workers or --ray-address"),
    ],
)
def test_a_mistaken_address_writes_nothing(address: str, workers: int | None, said: str, tmp_path: Path) -> None:
    """The address is asked before anything is computed."""
    with pytest.raises(UserError, match=said):
        simulate(CONFIG, tmp_path / "run", resources=Resources(workers, ray_address=address))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_impatient")
def test_a_port_that_is_not_rays_is_one_sentence(tmp_path: Path) -> None:
    """Something listens there and never says a word; Ray would wait for it for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"No Ray cluster answers at 127.0.0.1:{port} within"):
            simulate(CONFIG, tmp_path / "run", resources=Resources(ray_address=f"127.0.0.1:{port}"))


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["scope"] == "train"]
