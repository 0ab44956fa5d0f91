"""Folders of runs as the entry points leave them, whole or lacking parts, without any computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.evaluation.result import Result, write_result
from pipeline.scan.bundle import pack_bundle
from pipeline.scan.store import write_scan
from tests.builders import make_probe, make_scan

BUNDLE = {"config.json": b"{}\n", "wts.h5": b"weights"}


def result() -> Result:
    n, seen = 7, np.ones((20, 21), np.complex64)
    return Result(
        object=seen, coverage=np.ones(seen.shape, np.float32), origin_px=(0, 0), probe=make_probe(8, 8),
        frame_index=np.arange(n), positions=np.ones((n, 2)), shift=np.zeros((n, 2)), gain=np.ones(n),
        frame_loss=np.ones(n),
    )  # fmt: skip


def make_run(
    path: Path, *, kind: str = "reconstruct", store: str = "data.zarr", parts: tuple[str, ...] = ("result", "report"),
    **said: object,
) -> Path:  # fmt: skip
    """A run's folder as the entry points leave it; `said` replaces facts of its report."""
    path.mkdir()
    sha256 = write_scan(make_scan(), path / store)
    facts = {
        "format": "ptychozarr-run/1", "kind": kind, "store": store, "store_sha256": sha256,
        "source": {"name": "scan.npz", "sha256": "5c" * 32}, "command": ["python", "-m", f"pipeline.{kind}", "a scan"],
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(facts))
    (path / "run.toml").write_text("seed = 3\n")
    report: dict[str, object] = {"source": {"name": "scan.npz", "sha256": None, "store_sha256": sha256}}
    if "result" in parts:
        write_result(result(), path / "reconstruction.zarr", attrs={"store_sha256": sha256, "bundle_sha256": None})
    if "bundle" in parts:
        report["bundle_sha256"] = pack_bundle(path / "wts.h5.zip", BUNDLE, {"store_sha256": sha256})
    if "report" in parts:
        (path / "report.json").write_text(json.dumps(report | said))
    if "checkpoints" in parts:
        (path / "checkpoints").mkdir()
    return path
