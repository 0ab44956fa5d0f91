"""The bridge: callers of the legacy system get the same groups from an NPZ and from its store."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, PlanError
from pipeline.memmap_bridge import BridgeConfig, MemmapDatasetBridge
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from tests.builders import legacy_members, make_counts, make_probe, write_legacy_npz


def amplitude_members(n: int = 20, side: int = 64, key: str = "diffraction") -> dict[str, np.ndarray]:
    """A legacy file of amplitudes that prove nothing by themselves."""
    frames = np.random.default_rng(1).random((n, side, side), dtype=np.float32)
    return legacy_members(frames, key=key, xcoords_start=None)


def test_memmap_bridge_accepts_diffraction_legacy(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    bridge = MemmapDatasetBridge(npz, BridgeConfig(N=64, gridsize=2, n_groups=10, neighbor_count=4))
    grouped = bridge.get_grouped_data(N=64, K=4, nsamples=10, gridsize=2, seed=42)
    assert grouped["diffraction"].shape == (10, 64, 64, 4)
    assert grouped["diffraction"].dtype == np.float32
    with np.load(npz) as source:
        expected = np.moveaxis(source["diffraction"][grouped["nn_indices"]], 1, 3)
    np.testing.assert_array_equal(grouped["diffraction"], expected)


def test_memmap_bridge_keeps_the_dtypes_of_data_001(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    bridge = MemmapDatasetBridge(npz, BridgeConfig(N=64))
    assert bridge.diffraction.shape == (20, 64, 64)
    assert (bridge.diffraction.dtype, bridge.xcoords.dtype, bridge.ycoords.dtype) == (
        np.float32,
        np.float64,
        np.float64,
    )
    assert bridge.probe is not None
    assert bridge.object_guess is not None
    assert (bridge.probe.dtype, bridge.object_guess.dtype) == (np.complex64, np.complex64)


@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
@pytest.mark.parametrize("spelling", ["counts", "amplitude", "scaled", "big-endian", "yxf"])
@pytest.mark.parametrize("deflated", [False, True])
def test_memmap_bridge_from_npz_equals_bridge_from_zarr_exactly(
    tmp_path: Path, key: str, spelling: str, deflated: bool
) -> None:
    counts = make_counts(30, 16, 16)
    stack = {
        "counts": counts,
        "amplitude": np.random.default_rng(0).random((30, 16, 16), dtype=np.float32),
        "scaled": (np.sqrt(counts.astype(float)) / 9.7).astype(np.float32),
        "big-endian": np.sqrt(counts).astype(">f4"),
        "yxf": np.ascontiguousarray(counts.transpose(1, 2, 0)),
    }[spelling]
    members = legacy_members(counts, key=key, label=np.stack([make_probe(16, 16, seed=i)[0] for i in range(30)]))
    npz = write_legacy_npz(tmp_path / "scan.npz", {**members, key: stack}, deflated=deflated)
    said = Declaration(contract="data-001", position_origin="n/2-0.5")
    ingest(plan_ingest(npz, said), tmp_path / "scan.zarr")
    config = BridgeConfig(N=16, gridsize=2, declaration=said)
    one = MemmapDatasetBridge(npz, config)
    two = MemmapDatasetBridge(tmp_path / "scan.zarr", config)
    np.testing.assert_array_equal(one.diffraction, two.diffraction)
    grouped, again = (bridge.get_grouped_data(nsamples=12, seed=3) for bridge in (one, two))
    assert set(grouped) == set(again)
    for name, values in grouped.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_memmap_same_seed_same_groups_across_instances_and_another_seed_differs(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    config = BridgeConfig(N=64, gridsize=2)
    one, two = MemmapDatasetBridge(npz, config), MemmapDatasetBridge(npz, config)
    first = one.get_grouped_data(nsamples=10, seed=42)
    np.testing.assert_array_equal(first["nn_indices"], two.get_grouped_data(nsamples=10, seed=42)["nn_indices"])
    assert not np.array_equal(first["nn_indices"], one.get_grouped_data(nsamples=10, seed=43)["nn_indices"])


@pytest.mark.parametrize("deflated", [False, True])
def test_memmap_bridge_leaves_no_cache_file(tmp_path: Path, deflated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members(), deflated=deflated)
    MemmapDatasetBridge(npz, BridgeConfig(N=64, gridsize=2)).get_grouped_data(nsamples=10)
    assert [p.name for p in tmp_path.iterdir()] == ["legacy.npz"]


def test_memmap_start_coordinates_are_grouped_like_the_others_from_file_and_store(tmp_path: Path) -> None:
    members = amplitude_members()
    members |= {"xcoords_start": members["xcoords"] + 1, "ycoords_start": members["ycoords"] - 1}
    npz = write_legacy_npz(tmp_path / "legacy.npz", members)
    said = Declaration(contract="data-001", position_origin="corner")
    ingest(plan_ingest(npz, said), tmp_path / "scan.zarr")
    config = BridgeConfig(N=64, gridsize=2, declaration=said)
    one, two = (MemmapDatasetBridge(p, config).get_grouped_data(nsamples=9) for p in (npz, tmp_path / "scan.zarr"))
    shift = np.array([1.0, -1.0])[:, None]
    np.testing.assert_allclose(one["coords_start_nn"][:, 0] - one["coords_nn"][:, 0], np.broadcast_to(shift, (9, 2, 4)))
    for name in ("coords_start_nn", "coords_start_offsets", "coords_start_relative", "Y"):
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_memmap_without_labels_patches_are_cut_from_the_object(tmp_path: Path) -> None:
    members = legacy_members(make_counts(20), xcoords=np.arange(20.0) + 10, ycoords=np.full(20, 30.0))
    npz = write_legacy_npz(tmp_path / "legacy.npz", members)
    grouped = MemmapDatasetBridge(npz, BridgeConfig(N=8)).get_grouped_data(nsamples=20)
    assert grouped["Y"].shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(grouped["Y"][3, :, :, 0], members["objectGuess"][26:34, 9:17])


def test_memmap_takes_diffraction_where_both_keys_are_there_and_says_so(tmp_path: Path) -> None:
    members = amplitude_members()
    npz = write_legacy_npz(tmp_path / "legacy.npz", {**members, "diff3d": members["diffraction"] * 2})
    bridge = MemmapDatasetBridge(npz, BridgeConfig(N=64))
    np.testing.assert_array_equal(bridge.diffraction, members["diffraction"])
    assert any("both" in note for note in bridge.notes)


def test_memmap_counts_beyond_32_bits_are_refused_not_wrapped(tmp_path: Path) -> None:
    counts = make_counts(200, 64, 64).astype(np.int64)
    counts[190, 1, 1] = 2**32 + 4  # beyond the sample that is looked at first
    npz = write_legacy_npz(tmp_path / "legacy.npz", legacy_members(counts))
    with pytest.raises(ValueError, match="4294967300"):
        MemmapDatasetBridge(npz, BridgeConfig(N=64))


@pytest.mark.parametrize("wrong", [{"nsamples": 0}, {"gridsize": 0}, {"K": 0}])
def test_memmap_a_zero_is_refused_and_not_taken_for_the_default(tmp_path: Path, wrong: dict[str, int]) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    with pytest.raises(PlanError):
        MemmapDatasetBridge(npz, BridgeConfig(N=64, gridsize=2)).get_grouped_data(**wrong)


def test_memmap_relative_coordinates_sum_to_zero_and_point_back(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    grouped = MemmapDatasetBridge(npz, BridgeConfig(N=64, gridsize=2)).get_grouped_data(nsamples=10)
    relative, offsets, nn = (grouped[f"coords_{name}"] for name in ("relative", "offsets", "nn"))
    np.testing.assert_allclose(relative.sum(axis=3), 0, atol=1e-12)
    np.testing.assert_allclose(offsets - relative, nn, rtol=1e-14)
    with np.load(npz) as source:
        np.testing.assert_array_equal(nn[:, 0, 0], source["xcoords"][grouped["nn_indices"]])
        np.testing.assert_array_equal(nn[:, 0, 1], source["ycoords"][grouped["nn_indices"]])


def test_memmap_integers_are_square_rooted_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = make_counts(20, 64, 64)
    npz = write_legacy_npz(tmp_path / "legacy.npz", legacy_members(counts, key="diff3d"))
    with caplog.at_level(logging.WARNING):
        bridge = MemmapDatasetBridge(npz, BridgeConfig(N=64))
    np.testing.assert_array_equal(bridge.diffraction, np.sqrt(counts.astype(np.float64)).astype(np.float32))
    assert bridge.notes == ["'diff3d' holds counts; handing out square roots"]
    assert "square roots" in caplog.text


def test_memmap_a_stored_float_stack_is_mapped_where_it_lies(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    frames = MemmapDatasetBridge(npz, BridgeConfig(N=64)).diffraction
    assert isinstance(frames, np.memmap)
    assert Path(str(frames.filename)) == npz


def test_memmap_a_damaged_stack_is_noticed_before_it_is_mapped(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    data = bytearray(npz.read_bytes())
    data[5000] ^= 1
    npz.write_bytes(data)
    with pytest.raises(ValueError, match="CRC-32"):
        MemmapDatasetBridge(npz, BridgeConfig(N=64))


def test_memmap_another_frame_side_is_refused(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    with pytest.raises(ConfigError, match="N = 128"):
        MemmapDatasetBridge(npz, BridgeConfig(N=128))


def test_memmap_oversampling_001_is_refused_by_the_config_and_by_the_call(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="OVERSAMPLING-001"):
        BridgeConfig(N=64, gridsize=2, neighbor_count=3)
    npz = write_legacy_npz(tmp_path / "legacy.npz", amplitude_members())
    bridge = MemmapDatasetBridge(npz, BridgeConfig(N=64, gridsize=2))
    with pytest.raises(PlanError, match="OVERSAMPLING-001"):
        bridge.get_grouped_data(nsamples=100)
