"""Each tracker's own library reads back what was written, once, and nothing is sent anywhere."""

import struct
from pathlib import Path
from typing import Any

import pytest

from fedgraft.trackers.tracking import track

NAMES = ["accuracy/target/photo", "worst_site/target/sketch", "train/loss/photo", "left_out/photo"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracking server in the environment is not used."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://192.0.2.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://192.0.2.1:9")


@pytest.mark.slow  # imports a library
def test_tensorboard_reads_its_event_file(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(run, ["tensorboard"])
    track(run, ["tensorboard"])
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert set(NAMES) <= set(events.Tags()["scalars"])
    accuracy = [(event.step, event.value) for event in events.Scalars("accuracy/target/photo")]
    assert accuracy == [(0, 60.0), (1, 61.0), (2, 62.0)], "a second time replaces the first"
    assert [(event.step, event.value) for event in events.Scalars("result/mean")] == [(2, 67.0)]
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


@pytest.mark.slow  # makes a database of 30 tables
def test_mlflow_reads_its_store(run: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    track(run, ["mlflow"])
    track(run, ["mlflow"], root=run)
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedgraft")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("promptfl-seed0", "FINISHED")
    assert found.data.params["sites"] == "4"
    history = client.get_metric_history(found.info.run_id, "accuracy/target/photo")
    assert sorted((point.step, point.value) for point in history) == [(0, 60.0), (1, 61.0), (2, 62.0)]
    assert found.data.metrics["result/domain:photo"] == 62.0


@pytest.mark.slow  # starts wandb's own process
def test_wandb_writes_its_offline_run(run: Path) -> None:
    pytest.importorskip("wandb")
    track(run, ["wandb"])
    track(run, ["wandb"])
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    records = _records(file.read_bytes())
    history = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [line["accuracy/target/photo"] for line in history if "accuracy/target/photo" in line] == ["60", "61", "62"]
    settings = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert settings.display_name == "promptfl-seed0"


def _records(content: bytes) -> list[Any]:
    """The records of an offline run: a header of 7 bytes, then LevelDB's log of blocks of 32 KiB, decoded by wandb."""
    from wandb.proto import wandb_internal_pb2

    assert content[:4] == b":W&B"
    records, parts, at = [], b"", 7
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records
