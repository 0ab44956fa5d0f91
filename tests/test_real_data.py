"""Measured and published files, found through $PTYCHOZARR_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from converters.restore import restore
from pipeline.memmap_bridge import BridgeConfig, MemmapDatasetBridge
from pipeline.scan.audit import audit_store
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.store import open_scan, open_stored
from pipeline.simulate.forward import expected_intensity, extract_patches
from tests.builders import read_members

DATA = os.environ.get("PTYCHOZARR_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="PTYCHOZARR_TEST_DATA names no folder with the real files")


def source(name: str) -> Path:
    """A real file."""
    return Path(str(DATA)) / f"{name}.npz"


@pytest.mark.parametrize(
    ("name", "origin", "total"),
    [("siemens516_full", "n/2-0.5", 237_985_853), ("lines_ci_n1e5_train", None, 199_987_842),
     ("lines_ci_n1e5_test", None, 100_000_867)],
)  # fmt: skip
def test_real_files_keep_every_count_and_come_back_bit_for_bit(
    name: str, origin: str | None, total: int, tmp_path: Path
) -> None:
    done = ingest(plan_ingest(source(name), Declaration(position_origin=origin)), tmp_path / "s.zarr")
    assert (done.stack.quantity, done.stack.dtype.name, done.stack.total) == ("counts", "uint16", total)
    stored = open_stored(tmp_path / "s.zarr")
    with np.load(source(name)) as npz:  # its arrays only; _metadata is a pickle and stays closed
        np.testing.assert_array_equal(stored["diffraction"].values, npz["diff3d"])
        offset = 0.5 if origin else 0.0
        np.testing.assert_array_equal(stored["position_x"].values, npz["xcoords"] + offset)
    assert not audit_store(tmp_path / "s.zarr").damages
    report = restore(tmp_path / "s.zarr", tmp_path / "back.npz")
    assert not report.cast
    assert read_members(tmp_path / "back.npz") == read_members(source(name))


def test_the_measured_scan_keeps_its_mask_and_its_object_id(tmp_path: Path) -> None:
    done = ingest(plan_ingest(source("siemens516_full"), Declaration()), tmp_path / "s.zarr")
    assert {"valid", "legacy/bad_pixels", "legacy/scan_index"} <= set(done.record.arrays)
    np.testing.assert_array_equal(open_stored(tmp_path / "s.zarr")["frame_index"].values, np.arange(516))


def test_axes_half_pixel_and_pairing_of_the_simulated_scan_are_those_of_its_photons(tmp_path: Path) -> None:
    ingest(plan_ingest(source("lines_ci_n1e5_test"), Declaration()), tmp_path / "s.zarr")
    scan = open_scan(tmp_path / "s.zarr").isel(frame=slice(0, 100)).load(scheduler="synchronous")
    positions = np.stack([scan["position_y"].values, scan["position_x"].values], axis=1)
    counts = scan["diffraction"].values.astype(float) ** 2

    def chi_square(frames: np.ndarray, at: np.ndarray) -> float:
        expected = expected_intensity(extract_patches(scan["object"].values, at, 64), scan["probe"].values)
        return float(((frames - expected) ** 2 / (expected + 1e-9)).mean())

    right = chi_square(counts, positions)
    assert 0.95 < right < 1.05
    for wrong in (
        chi_square(counts, positions[:, ::-1]),
        chi_square(counts.transpose(0, 2, 1), positions),
        chi_square(counts[:, ::-1], positions),
        chi_square(counts, positions + 0.5),
        chi_square(np.roll(counts, 1, axis=0), positions),
    ):
        assert wrong > 1.05 * right  # half a pixel: 1.09, the others more


def test_the_bridge_serves_the_same_groups_from_the_file_and_from_its_store(tmp_path: Path) -> None:
    said = Declaration(position_origin="n/2-0.5")
    ingest(plan_ingest(source("siemens516_full"), said), tmp_path / "s.zarr")
    config = BridgeConfig(N=128, gridsize=2, declaration=said)
    one, two = (
        MemmapDatasetBridge(path, config).get_grouped_data(nsamples=32, seed=7)
        for path in (source("siemens516_full"), tmp_path / "s.zarr")
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
