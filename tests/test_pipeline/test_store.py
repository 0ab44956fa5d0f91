"""A store is whole or not there, opens lazily, and notices every damaged byte."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from converters.restore import restore
from pipeline.errors import IntegrityError, NotFoundError, PipelineError, SchemaError, SourceError, TargetExistsError
from pipeline.scan.audit import audit_store
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.manifest import canonical_json
from pipeline.scan.store import open_scan, open_stored, write_scan
from tests.builders import legacy_members, make_counts, make_scan, tree_bytes, write_legacy_npz
from tests.guards import forbid_compute


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted store with several chunks, side arrays and a mask."""
    folder = tmp_path_factory.mktemp("whole")
    counts = make_counts(300, 64, 64)
    bad = np.zeros((64, 64), bool)
    bad[3, 5] = True
    npz = write_legacy_npz(folder / "scan.npz", legacy_members(counts, bad_pixels=bad, extra=np.arange(5.0)))
    ingest(plan_ingest(npz, Declaration()), folder / "scan.zarr")
    return folder / "scan.zarr"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    for name, data in tree_bytes(whole).items():
        (tmp_path / "s.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s.zarr" / name).write_bytes(data)
    return tmp_path / "s.zarr"


def read_everything(path: Path) -> None:
    """Open a scan and compute every variable."""
    open_scan(path).load(scheduler="synchronous")


def test_what_is_written_is_what_is_opened(tmp_path: Path) -> None:
    scan = make_scan(n_frames=9, modes=2)
    write_scan(scan, tmp_path / "s.zarr")
    xr.testing.assert_identical(open_stored(tmp_path / "s.zarr").drop_attrs(), scan.drop_attrs())


def test_counts_are_handed_out_as_amplitude_and_say_so(tmp_path: Path) -> None:
    scan = make_scan()
    write_scan(scan, tmp_path / "s.zarr")
    opened = open_scan(tmp_path / "s.zarr")
    expected = np.sqrt(scan["diffraction"].values.astype(np.float64)).astype(np.float32)
    assert opened["diffraction"].dtype == np.float32
    np.testing.assert_array_equal(opened["diffraction"].values, expected)
    assert opened["diffraction"].attrs["quantity"] == "amplitude"
    assert opened["diffraction"].attrs["stored_quantity"] == "counts"


def test_opening_a_scan_reads_no_frame(whole: Path) -> None:
    with forbid_compute():
        open_scan(whole)
        open_stored(whole)


def test_one_dask_task_per_chunk(whole: Path) -> None:
    frames = open_scan(whole)["diffraction"]
    assert len(dict(frames.data.dask)) == frames.data.npartitions == 2


def test_two_writings_give_the_same_tree(tmp_path: Path) -> None:
    write_scan(make_scan(n_frames=40), tmp_path / "a.zarr")
    write_scan(make_scan(n_frames=40).chunk(frame=7), tmp_path / "b.zarr")
    assert tree_bytes(tmp_path / "a.zarr") == tree_bytes(tmp_path / "b.zarr")


def test_plain_xarray_opens_it_without_a_warning(whole: Path) -> None:
    script = (
        "import xarray as xr\n"
        f"ds = xr.open_zarr({str(whole)!r})\n"
        f"tree = xr.open_datatree({str(whole)!r})\n"
        "assert ds.diffraction.dims == ('frame', 'detector_y', 'detector_x')\n"
        "assert ds.diffraction.attrs['units'] == 'photon' and ds.position_y.attrs['units'] == 'pixel'\n"
        "assert ds.attrs['provenance']['source']['name'] == 'scan.npz'\n"
        "assert 'extra' in tree['legacy'] and ds.diffraction.dtype == 'uint16'\n"
        "ds.load(); tree.load()\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_target_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "mine.txt").write_text("keep me")
    with pytest.raises(TargetExistsError):
        write_scan(make_scan(), tmp_path / "s.zarr")
    assert tree_bytes(tmp_path) == {"s.zarr/mine.txt": b"keep me"}


def test_overwriting_replaces_a_store_whole(tmp_path: Path) -> None:
    write_scan(make_scan(n_frames=3), tmp_path / "s.zarr")
    write_scan(make_scan(n_frames=5), tmp_path / "s.zarr", overwrite=True)
    assert open_stored(tmp_path / "s.zarr").sizes["frame"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_amplitude_are_refused_and_leave_nothing(tmp_path: Path, value: float) -> None:
    scan = make_scan(quantity="amplitude")
    scan["diffraction"].values[2, 1, 1] = value
    with pytest.raises(SchemaError):
        write_scan(scan, tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_the_validator_lists_every_violation_with_its_rule(tmp_path: Path) -> None:
    scan = make_scan().drop_vars("frame_index").rename(position_x="where")
    scan.attrs["photons_scale"] = -1.0
    with pytest.raises(SchemaError) as failure:
        write_scan(scan, tmp_path / "s.zarr")
    for rule in ("variable.required: no 'frame_index'", "variable.required: no 'position_x'", "variable.known: 'where'",
                 "attribute.amplitude"):  # fmt: skip
        assert rule in str(failure.value)


def test_nothing_there_and_something_foreign_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_scan(tmp_path / "none.zarr")
    with pytest.raises(SourceError):
        open_scan(tmp_path)


def test_only_a_store_is_overwritten(tmp_path: Path) -> None:
    for name in ("notes.zarr", "mixed.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("keep me")
    write_scan(make_scan(), tmp_path / "whole.zarr")
    for path in (tmp_path / "whole.zarr").iterdir():
        path.rename(tmp_path / "mixed.zarr" / path.name)
    (tmp_path / "file.zarr").write_text("keep me")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "mixed.zarr")
    for name in ("notes.zarr", "mixed.zarr", "file.zarr", "link.zarr"):
        with pytest.raises(TargetExistsError):
            write_scan(make_scan(), tmp_path / name, overwrite=True)
    assert (tmp_path / "mixed.zarr" / "mine.txt").read_text() == "keep me"


def test_a_scan_written_anew_does_not_claim_the_members_of_its_source(whole: Path, tmp_path: Path) -> None:
    write_scan(open_stored(whole).isel(frame=slice(0, 10)), tmp_path / "part.zarr")
    part = open_stored(tmp_path / "part.zarr")
    assert part.attrs["provenance"]["derived_from"]["source"]["name"] == "scan.npz"
    report = restore(tmp_path / "part.zarr", tmp_path / "part.npz")
    assert not report.from_source
    with np.load(tmp_path / "part.npz") as npz:
        np.testing.assert_array_equal(npz["diffraction"], part["diffraction"].values)


def test_counts_without_a_formula_are_no_scan(tmp_path: Path) -> None:
    scan = make_scan()
    scan.attrs["amplitude_formula"] = scan.attrs["photons_scale"] = None
    with pytest.raises(SchemaError, match=r"attribute\.counts"):
        write_scan(scan, tmp_path / "s.zarr")


def test_positions_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    scan = make_scan()
    scan["position_x"].values[1] = np.nan
    with pytest.raises(SchemaError, match="position_x"):
        write_scan(scan, tmp_path / "s.zarr")


def test_a_scan_opened_by_a_relative_path_survives_a_change_of_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.parent)
    scan = open_scan(whole.name)
    monkeypatch.chdir(tmp_path)
    scan.load(scheduler="synchronous")


def test_a_task_carries_its_own_chunk_and_no_manifest(whole: Path) -> None:
    frames = open_scan(whole)["diffraction"].data
    assert max(len(pickle.dumps(task)) for task in dict(frames.dask).values()) < 2500


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_every_scheduler_reads_the_same(whole: Path, scheduler: str) -> None:
    scan = open_scan(whole)["diffraction"]
    expected = scan.compute(scheduler="synchronous")
    xr.testing.assert_identical(pickle.loads(pickle.dumps(scan)).compute(scheduler=scheduler), expected)


# --- damage ---------------------------------------------------------------------------------------------------


def all_files(root: Path) -> list[str]:
    """The store's files, largest last."""
    return sorted(tree_bytes(root))


@given(data=st.data())
def test_any_changed_byte_of_any_file_is_noticed_by_verify_and_by_reading(store: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(all_files(store)))
    original = (store / name).read_bytes()
    where = data.draw(st.integers(0, len(original) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[where] ^= flip
    (store / name).write_bytes(changed)
    try:
        assert audit_store(store).damages, (name, where, flip)
        with pytest.raises(PipelineError) as failure:
            read_everything(store)
        assert failure.value.exit_code == 6
    finally:
        (store / name).write_bytes(original)


@pytest.mark.parametrize("name", ["zarr.json", "diffraction/zarr.json", "manifest.json"])
def test_every_byte_of_the_metadata_is_guarded(name: str, tmp_path: Path) -> None:
    write_scan(make_scan(), tmp_path / "s.zarr")
    path = tmp_path / "s.zarr" / name
    original = path.read_bytes()
    for where in range(0, len(original), 1 if len(original) < 1000 else 7):
        for flip in (1, 0x20):
            changed = bytearray(original)
            changed[where] ^= flip
            path.write_bytes(changed)
            assert audit_store(tmp_path / "s.zarr").damages, (where, flip)
            with pytest.raises(IntegrityError):
                open_scan(tmp_path / "s.zarr")


def test_any_removed_file_is_noticed_by_verify_and_by_reading(store: Path) -> None:
    for name in all_files(store):
        original = (store / name).read_bytes()
        (store / name).unlink()
        assert audit_store(store).damages, name
        with pytest.raises(IntegrityError):
            read_everything(store)
        (store / name).write_bytes(original)


def test_any_truncated_file_is_noticed_by_verify_and_by_reading(store: Path) -> None:
    for name in all_files(store):
        original = (store / name).read_bytes()
        (store / name).write_bytes(original[: len(original) // 2])
        assert audit_store(store).damages, name
        with pytest.raises(IntegrityError):
            read_everything(store)
        (store / name).write_bytes(original)


@pytest.mark.parametrize("field", [0, 1, 2], ids=["size", "sha256", "crc32c"])
def test_a_changed_promise_in_the_manifest_is_noticed_by_verify_and_on_opening(store: Path, field: int) -> None:
    manifest = json.loads((store / "manifest.json").read_bytes())
    for path, promise in manifest.items():
        value = promise[field]
        changed = [*promise]
        changed[field] = f"{int(value[0], 16) ^ 1:x}{value[1:]}" if field == 1 else value ^ 1
        (store / "manifest.json").write_bytes(canonical_json({**manifest, path: changed}))
        assert audit_store(store).damages, path
        with pytest.raises(IntegrityError), forbid_compute():
            open_scan(store)


def test_a_manifest_that_only_reads_the_same_is_damage(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_bytes())
    (store / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1))
    assert audit_store(store).damages
    with pytest.raises(IntegrityError, match="canonical"):
        open_scan(store)


def test_a_truncated_chunk_is_noticed_on_opening_already(store: Path) -> None:
    chunk = store / "diffraction" / "c.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=r"diffraction chunk 1 \(frames 256-299\)"), forbid_compute():
        open_scan(store)


def exchange(one: Path, two: Path) -> None:
    """Give each file the other's content."""
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def test_two_exchanged_chunks_of_equal_size_are_noticed(tmp_path: Path) -> None:
    scan = make_scan(n_frames=2, side=8)
    frames = np.zeros((4, 1024, 1024), np.uint16)  # one frame is one chunk
    frames[:, 0, 0] = [1, 2, 4, 8]
    scan = xr.Dataset(
        {
            "diffraction": (("frame", "detector_y", "detector_x"), frames, scan["diffraction"].attrs),
            "position_y": (("frame",), np.arange(4.0), {"units": "pixel"}),
            "position_x": (("frame",), np.arange(4.0) + 7, {"units": "pixel"}),
            "frame_index": (("frame",), np.arange(4)),
        },
        attrs=scan.attrs,
    )
    write_scan(scan, tmp_path / "s.zarr")
    chunks = [tmp_path / "s.zarr" / "diffraction" / f"c.{i}.0.0" for i in range(4)]
    one, two = next((a, b) for a, b in itertools.combinations(chunks, 2) if a.stat().st_size == b.stat().st_size)
    exchange(one, two)
    assert len(audit_store(tmp_path / "s.zarr").damages) == 2
    frame = chunks.index(one)
    with pytest.raises(IntegrityError, match=rf"diffraction chunk {frame} \(frames {frame}-{frame}\)"):
        open_scan(tmp_path / "s.zarr")["diffraction"][frame].load()
    exchange(one, two)
    assert not audit_store(tmp_path / "s.zarr").damages


def test_exchanged_coordinates_are_noticed(store: Path) -> None:
    exchange(store / "position_x" / "c.0", store / "position_y" / "c.0")
    assert audit_store(store).damages
    with pytest.raises(IntegrityError):
        read_everything(store)


def test_an_added_file_is_noticed_by_verify(store: Path) -> None:
    (store / "diffraction" / "c.9.0.0").write_bytes(b"more")
    (damage,) = audit_store(store).damages
    assert damage.path == "diffraction/c.9.0.0"


def test_a_link_in_place_of_a_file_is_noticed_by_verify(store: Path, tmp_path: Path) -> None:
    chunk = store / "diffraction" / "c.0.0.0"
    (tmp_path / "elsewhere").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(tmp_path / "elsewhere")
    assert audit_store(store).damages


def test_damage_names_array_chunk_and_frames(store: Path) -> None:
    chunk = store / "diffraction" / "c.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    (damage,) = audit_store(store).damages
    assert "diffraction chunk 1 (frames 256-299)" in damage.holds
    with pytest.raises(IntegrityError, match=r"diffraction chunk 1 \(frames 256-299\)"):
        open_scan(store)["diffraction"][260].load()
    open_scan(store)["diffraction"][0].load()
