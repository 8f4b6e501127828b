"""Embeddings of unknown images from devices whose owners share them: kept at the registry, written to a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_bytes
from fedgraft.device.agent.embedding_sample import SHARED_EMBEDDINGS, as_embedding
from fedgraft.device.agent.metadata import BUNDLE, Release
from fedgraft.device.manifest import MANIFEST
from fedgraft.fleet.database import Database, Row, now
from fedgraft.fleet.fleet_folder import FleetFolder

KEPT = 64
"""The newest embeddings of a device that the registry keeps."""


@dataclass(frozen=True)
class Written:
    """What a file has.

    Attributes:
        version: the release whose encoder computed them.
        devices: how many devices they are from.
        embeddings: how many there are.
    """

    version: int
    devices: int
    embeddings: int


def keep_embeddings(folder: FleetFolder, database: Database, device: str, release: Row, shared: Any) -> None:
    """Store what a device shares, and give up its oldest; raises ValueError for what are no embeddings of the release.

    Args:
        release: its row.
        shared: of the device's report.
    """
    if not isinstance(shared, list) or len(shared) > SHARED_EMBEDDINGS:
        raise ValueError(f"embeddings is not a list of at most {SHARED_EMBEDDINGS}")
    if not shared:
        return
    dim = _dim(folder, release)
    for found in [as_embedding(text, dim) for text in shared]:
        database.execute("INSERT INTO embeddings VALUES (?, ?, ?, ?)", device, release["id"], now(), found.tobytes())
    database.execute(
        "DELETE FROM embeddings WHERE device = ? AND rowid NOT IN "
        "(SELECT rowid FROM embeddings WHERE device = ? ORDER BY rowid DESC LIMIT ?)",
        device, device, KEPT,
    )  # fmt: skip


def write_embeddings(folder: FleetFolder, out: Path, version: int | None = None, group: str | None = None) -> Written:
    """Write what the devices have shared to a safetensors file.

    `embeddings` (n, dim) float16, the newest last, and `devices` (n,) int64, positions in the list of devices that the
    file's metadata have beside the version.

    Args:
        version: of a release; the newest that anything was shared of unless given.
        group: only of its devices.

    Raises:
        UserError: there are none.
    """
    with folder.database() as database:
        rows = database.rows(
            "SELECT e.device, e.row, r.version, r.id FROM embeddings e JOIN releases r ON r.id = e.release "
            "JOIN devices d ON d.id = e.device WHERE (? IS NULL OR r.version = ?) AND (? IS NULL OR d.grp = ?) "
            "ORDER BY e.rowid",
            version, version, group, group,
        )  # fmt: skip
    if not rows:
        raise UserError(
            "No device has shared embeddings of this kind; the agent of a device whose owner does so has "
            "--share-embeddings."
        )
    newest = max(rows, key=lambda row: int(row["version"]))["id"]
    rows = [row for row in rows if row["id"] == newest]
    devices = sorted({row["device"] for row in rows})
    content = {
        "embeddings": np.stack([np.frombuffer(row["row"], "<f2") for row in rows]),
        "devices": np.array([devices.index(row["device"]) for row in rows], np.int64),
    }
    found = Written(int(rows[0]["version"]), len(devices), len(rows))
    write_bytes(out, save(content, {"version": str(found.version), "devices": json.dumps(devices)}))
    return found


def _dim(folder: FleetFolder, release: Row) -> int:
    files = Release.parse(json.loads(release["content"])).files
    manifest = next(file for file in files if file.path == f"{BUNDLE}/{MANIFEST}")
    return int(json.loads(folder.blob(manifest.sha256).read_bytes())["dim"])
