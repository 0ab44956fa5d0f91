"""Phase C: a dose is simulated, measured, split and proven, the same each time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import ConfigError, EnvironmentFault, PipelineError
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.record import open_record
from pipeline.scan.store import open_stored, write_scan
from pipeline.simulate.forward import extract_patches
from pipeline.study.design import Split
from pipeline.study.generate import split_frames
from pipeline.study.spread import Crew, spread
from tests.builders import tree_bytes
from tests.study_roots import FRAMES, generated, hashes_in, study, write_base, write_design


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phase C root with files of the old layout too."""
    return generated(tmp_path_factory.mktemp("generate"), "--legacy-npz")


def entry_of(root: Path, dose: int = 1000) -> dict:
    return json.loads((root / "run_manifest.json").read_text())[f"dose_{dose}"]


def test_every_frame_of_the_base_is_in_one_half_and_lies_on_its_side(root: Path) -> None:
    entry = entry_of(root)
    parts = {split: open_stored(root / entry[split]) for split in ("train", "test")}
    assert sorted(np.concatenate([part.frame_index.values for part in parts.values()])) == list(range(FRAMES))
    threshold = entry["split"]["threshold"]
    assert parts["train"].position_y.values.max() < threshold <= parts["test"].position_y.values.min()
    assert (entry["n_train"], entry["n_test"]) == (parts["train"].sizes["frame"], parts["test"].sizes["frame"])


@given(arrays(np.float64, (20, 2), elements=st.floats(0, 100)), st.floats(0.05, 0.95), st.sampled_from(["y", "x"]))
def test_a_split_is_at_a_share_of_the_range_of_its_axis(points: np.ndarray, fraction: float, axis: str) -> None:
    threshold, first = split_frames(points, Split(axis=axis, fraction=fraction))
    along = points[:, "yx".index(axis)]
    assert threshold == pytest.approx(along.min() + fraction * np.ptp(along))
    assert np.array_equal(first, along < threshold)


def test_the_dose_is_the_one_that_was_counted(root: Path) -> None:
    for dose in (1000, 10000):
        entry = entry_of(root, dose)
        counts = [xr.open_zarr(root / entry[split]).diffraction.values for split in ("train", "test")]
        total = sum(part.sum(dtype=float) for part in counts)
        assert entry["photons_per_frame"]["measured"] == pytest.approx(total / FRAMES)
        assert total / FRAMES == pytest.approx(dose, rel=0.01)
        assert entry["photons_per_frame"]["train"] == pytest.approx(counts[0].sum(axis=(1, 2)).mean())


def test_labels_are_what_each_frame_sees_of_the_object(root: Path) -> None:
    part = open_stored(root / "dose_1000" / "patched_test.zarr")
    positions = np.stack([part.position_y.values, part.position_x.values], axis=1)
    seen = extract_patches(part.object.values.astype(np.complex128), positions, 32)
    np.testing.assert_allclose(part.label.values, seen, atol=1e-6)
    assert part.object.attrs["role"] == "truth"


def test_the_frames_are_those_of_the_physics(root: Path) -> None:
    """The mean over frames of the counts is that of |FFT(P O)|^2, within its noise."""
    part = open_stored(root / "dose_10000" / "patched_train.zarr")
    far = np.fft.fftshift(np.fft.fft2(part.label.values * part.probe.values[0], norm="ortho"), axes=(1, 2))
    expected = (np.abs(far) ** 2).sum(0)
    spread_of = np.sqrt(np.maximum(expected, 1))
    assert np.abs((part.diffraction.values.sum(0, dtype=float) - expected) / spread_of).max() < 6


def test_the_manifest_has_the_digests_of_what_is_on_disk(root: Path) -> None:
    for dose in (1000, 10000):
        entry = entry_of(root, dose)
        for split in ("train", "test"):
            assert entry[f"{split}_store_sha256"] == open_record(root / entry[split]).store_sha256
            file = entry["legacy_npz"][split]
            data = (root / file["path"]).read_bytes()
            assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    base = root.parent / "base.npz"
    assert entry["base"] == {
        "kind": "npz", "name": "base.npz", "sha256": hashlib.sha256(base.read_bytes()).hexdigest()
    }  # fmt: skip


def test_files_of_the_old_layout_hold_the_same_counts_and_patches(root: Path, tmp_path: Path) -> None:
    ingest(plan_ingest(root / "dose_1000" / "patched_train.npz", Declaration()), tmp_path / "back.zarr")
    back, ours = open_stored(tmp_path / "back.zarr"), open_stored(root / "dose_1000" / "patched_train.zarr")
    for name in ("diffraction", "label", "position_y", "position_x", "object"):
        np.testing.assert_array_equal(back[name].values, ours[name].values)
    with np.load(root / "dose_1000" / "patched_train.npz") as file:
        assert file["diffraction"].dtype == np.float32
        assert set(file) >= {"diffraction", "Y", "xcoords", "ycoords", "probeGuess", "objectGuess", "scan_index"}


def test_the_same_again_is_unchanged_to_the_last_byte(root: Path) -> None:
    before = tree_bytes(root)
    again = study("generate", "--base-npz", root.parent / "base.npz", "--output-root", root, "--legacy-npz",
                  "--design", root.parent / "design.toml")  # fmt: skip
    assert again.returncode == 0
    assert again.stdout.count("unchanged") == 2
    assert tree_bytes(root) == before


def test_another_design_or_base_in_the_same_root_is_refused_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    before = tree_bytes(root)
    other = write_design(tmp_path / "d.toml", seeds={"simulation": 5})
    done = study("generate", "--base-npz", root.parent / "base.npz", "--output-root", root, "--design", other)
    assert done.returncode == 7
    assert "another --output-root" in done.stderr
    done = study("generate", "--output-root", root, "--design", root.parent / "design.toml")
    assert done.returncode == 7
    assert tree_bytes(root) == before


def test_damage_in_a_store_that_is_there_is_named(tmp_path: Path) -> None:
    root = generated(tmp_path, doses=[1000])
    chunk = root / "dose_1000" / "patched_test.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    again = study("generate", "--base-npz", tmp_path / "base.npz", "--output-root", root, "--design",
                  tmp_path / "design.toml")  # fmt: skip
    assert again.returncode == 6
    assert "patched_test.zarr" in again.stderr


def test_a_store_serves_as_base_and_the_built_in_one_needs_none(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.npz")
    ingest(plan_ingest(base, Declaration()), tmp_path / "base.zarr")
    design = write_design(tmp_path / "d.toml", doses=[1000])
    for name in ("base.npz", "base.zarr"):
        done = study(
            "generate", "--base-npz", tmp_path / name, "--output-root", tmp_path / name[-4:], "--design", design
        )
        assert done.returncode == 0, done.stderr
    digests = [open_record(tmp_path / end / "dose_1000" / "patched_train.zarr").manifest for end in (".npz", "zarr")]
    assert digests[0]["diffraction/c.0.0.0"] == digests[1]["diffraction/c.0.0.0"]
    done = study("generate", "--output-root", tmp_path / "built-in", "--design", design, "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["data"]["doses"]
    assert entry["n_train"] + entry["n_test"] == 2000
    assert entry["base"] == {"recipe": "lines"}


def test_a_base_that_cannot_be_is_refused_with_its_own_exit_code(tmp_path: Path) -> None:
    base, design = write_base(tmp_path / "base.npz"), write_design(tmp_path / "d.toml", doses=[1000])
    assert study("generate", "--base-npz", tmp_path / "none.npz", "--output-root", tmp_path / "c").returncode == 5
    with np.load(base) as source:
        members = dict(source)
    flat = np.zeros_like(members["objectGuess"])
    for name, changed, said in (
        ("zero", {**members, "objectGuess": flat}, "object is zero"),
        ("nan", {**members, "probeGuess": members["probeGuess"] * np.nan}, "probe"),
        ("no-object", {k: v for k, v in members.items() if k != "objectGuess"}, "no object"),
        ("no-probe", {k: v for k, v in members.items() if k != "probeGuess"}, "no probe"),
        ("far", {**members, "xcoords": members["xcoords"] + 500}, "sees nothing"),
    ):
        np.savez(tmp_path / f"{name}.npz", **changed)
        done = study("generate", "--base-npz", tmp_path / f"{name}.npz", "--output-root", tmp_path / name,
                     "--design", design)  # fmt: skip
        assert done.returncode == 4, (name, done.stderr)
        assert said in done.stderr
        assert not list((tmp_path / name).rglob("*.zarr"))


def test_an_object_without_content_and_frames_beyond_its_edge_are_told(tmp_path: Path) -> None:
    with np.load(write_base(tmp_path / "base.npz")) as source:
        members = dict(source)
    members["objectGuess"] = np.ones_like(members["objectGuess"])
    members["ycoords"] = members["ycoords"] + 5
    np.savez(tmp_path / "flat.npz", **members)
    design = write_design(tmp_path / "d.toml", doses=[1000])
    done = study("generate", "--base-npz", tmp_path / "flat.npz", "--output-root", tmp_path / "c", "--design", design)
    assert done.returncode == 0
    assert "the same everywhere" in done.stderr
    assert "look beyond the object" in done.stderr


def test_a_first_try_that_failed_leaves_the_root_free_for_another_design(tmp_path: Path) -> None:
    base, root = write_base(tmp_path / "b.npz"), tmp_path / "c"
    wrong = write_design(tmp_path / "w.toml", split={"fraction": 0.001}, gridsizes=[3], neighbor_count=9)
    assert study("generate", "--base-npz", base, "--output-root", root, "--design", wrong).returncode == 2
    assert json.loads((root / "run_manifest.json").read_text()) == {}
    right = write_design(tmp_path / "r.toml", doses=[1000])
    assert study("generate", "--base-npz", base, "--output-root", root, "--design", right).returncode == 0


def test_a_half_that_fills_no_group_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "b.npz")
    design = write_design(tmp_path / "d.toml", split={"fraction": 0.001}, gridsizes=[3], neighbor_count=9)
    done = study("generate", "--base-npz", base, "--output-root", tmp_path / "c", "--design", design)
    assert done.returncode == 2
    assert "split.fraction" in done.stderr


def test_two_processes_of_a_cluster_leave_the_bytes_of_one(root: Path, tmp_path: Path) -> None:
    done = study("generate", "--base-npz", root.parent / "base.npz", "--output-root", tmp_path / "c", "--legacy-npz",
                 "--design", root.parent / "design.toml", "--workers", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree_bytes(tmp_path / "c") == tree_bytes(root)
    assert hashes_in(json.loads((root / "run_manifest.json").read_text()))


def test_another_process_at_work_keeps_this_one_out(tmp_path: Path) -> None:
    from multiprocessing import get_context

    (tmp_path / "c").mkdir()
    context = get_context("spawn")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "c", ready, end))
    other.start()
    try:
        assert ready.wait(60)
        done = study("generate", "--output-root", tmp_path / "c")
        assert done.returncode == 7
        assert "another process" in done.stderr
    finally:
        end.set()
        other.join()


def hold(root: Path, ready, end) -> None:
    from pipeline.study.folder import root_at_work

    with root_at_work(root, again="nothing"):
        ready.set()
        end.wait(60)


def test_an_address_without_a_scheduler_and_two_kinds_of_crew_are_refused() -> None:
    with pytest.raises(ConfigError):
        Crew(workers=1, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(EnvironmentFault, match="no dask scheduler"):
        next(spread([1], abs, crew=Crew(scheduler="nowhere")))
    assert dask.array.ones(3).sum().compute() == 3  # here, and not by a cluster that never was


def test_a_failing_task_does_not_take_the_others_with_it() -> None:
    found = dict(spread([1, 2, 3], fail_at_two, crew=Crew()))
    assert isinstance(found[2], PipelineError)
    assert (found[1], found[3]) == (1, 3)


def fail_at_two(task: int) -> int:
    if task == 2:
        raise ConfigError("two", code="test")
    return task


def test_a_store_made_in_another_way_under_the_same_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    root = generated(tmp_path, doses=[1000])
    target = root / "dose_1000" / "patched_train.zarr"
    part = open_stored(target).load()
    part.attrs = {**part.attrs, "provenance": {**part.attrs["provenance"], "simulation": {"seed": 0}}}
    write_scan(part, target, overwrite=True)
    done = study("generate", "--base-npz", tmp_path / "base.npz", "--output-root", root, "--design",
                 tmp_path / "design.toml")  # fmt: skip
    assert done.returncode == 7
