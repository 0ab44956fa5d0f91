"""A legacy NPZ becomes a store and comes back as the same bytes, whatever its dialect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters.restore import restore
from pipeline.errors import SourceError
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import Ingested, ingest, plan_ingest
from pipeline.scan.store import open_scan, open_stored
from tests.builders import (
    legacy_members,
    make_counts,
    make_probe,
    object_metadata,
    read_members,
    tree_bytes,
    write_legacy_npz,
)


def convert(npz: Path, *, drop_original: bool = False, **declared: Any) -> Ingested:
    """Convert to the store beside it."""
    plan = plan_ingest(npz, Declaration(**declared), drop_original=drop_original)
    return ingest(plan, npz.with_suffix(".zarr"))


def restored(npz: Path) -> dict[str, bytes]:
    """The members that the store beside it gives back."""
    target = npz.with_name("back.npz")
    restore(npz.with_suffix(".zarr"), target, overwrite=True)
    return read_members(target)


def axes_of(counts: np.ndarray, axes: str) -> np.ndarray:
    """A stack (frame, y, x) with its axes in another order; `1` is a trailing singleton."""
    moved = counts.transpose(["fyx".index(a) for a in axes[:3]])
    return np.ascontiguousarray(moved[..., np.newaxis] if axes.endswith("1") else moved)


dialects = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["diffraction", "diff3d"]),
        "axes": st.sampled_from(["fyx", "yxf", "fyx1"]),
        "order": st.sampled_from(["C", "F"]),
        "byteorder": st.sampled_from(["<", ">"]),
        "deflated": st.booleans(),
        "spelling": st.sampled_from(
            ["u1", "u2", "u4", "i4", "i8", "f4 counts", "f8 counts", "f4 root", "f8 root", "f4 scaled", "f4 scaled 64",
             "f4 noise", "f8 noise", "f2 noise"]
        ),
        "probe": st.sampled_from(["yx", "myx", "yx1", "modes", "none"]),
        "complex": st.sampled_from(["c8", "c16"]),
        "frames": st.integers(1, 40),
        "shape": st.tuples(st.integers(3, 12), st.integers(3, 12)),
        "origin": st.sampled_from([None, "n/2-0.5", "corner"]),
    }
)  # fmt: skip


def spelled(counts: np.ndarray, spelling: str, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """A stack in a spelling and what has to be declared for it."""
    dtype, *how = spelling.split()
    if not how or how == ["counts"]:
        return counts.astype(dtype), {"quantity": "counts"} if how else {}
    root = np.sqrt(counts.astype(np.float64))
    if how == ["noise"]:
        return (root * rng.uniform(0.5, 1.5, counts.shape)).astype(dtype), {"contract": "data-001"}
    scale = {"root": 1.0, "scaled": np.float32(37.25), "scaled 64": 37.123456789}[" ".join(how)]
    return (root.astype(dtype) / scale).astype(dtype), {"contract": "data-001"}


@given(dialect=dialects, seed=st.integers(0, 2**16))
def test_every_member_of_every_dialect_comes_back_bit_for_bit(
    dialect: dict[str, Any], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dialect")
    rng = np.random.default_rng(seed)
    height, width = dialect["shape"]
    counts = rng.poisson(rng.exponential(6.0, (height, width)), (dialect["frames"], height, width)).clip(0, 250)
    stack, declared = spelled(counts, dialect["spelling"], rng)
    stack = np.asarray(axes_of(stack, dialect["axes"]), order=dialect["order"])
    stack = stack.astype(stack.dtype.newbyteorder(dialect["byteorder"]))
    probe = make_probe(height, width, modes=3 if dialect["probe"] == "modes" else 1).astype(dialect["complex"])
    shaped = {"yx": probe[0], "yx1": probe[0][..., np.newaxis], "none": None}.get(dialect["probe"], probe)
    members = legacy_members(counts, key=dialect["key"], probeGuess=shaped)
    members = {**members, dialect["key"]: stack, "_metadata": object_metadata({"nphotons": 1e5}),
               "names": np.array(["a", "bb"]), "odd": rng.normal(size=(2, 3)).astype(">f8"), "empty": np.empty((0, 2)),
               "xcoords_start": members["xcoords"], "scalar": np.float32(3.5)}  # fmt: skip
    npz = write_legacy_npz(folder / "scan.npz", members, deflated=dialect["deflated"])
    done = convert(npz, axes=dialect["axes"][:3], positions="pixel", position_origin=dialect["origin"], **declared)
    assert restored(npz) == read_members(npz)
    opened = open_scan(npz.with_suffix(".zarr"))
    amplitude = opened["diffraction"].values
    canonical = np.sqrt(counts) if "noise" not in dialect["spelling"] else None
    if dialect["spelling"] in ("u1", "u2", "u4", "i4", "i8", "f4 counts", "f8 counts", "f4 root", "f8 root"):
        np.testing.assert_array_equal(amplitude, canonical.astype(np.float32))
    half = {n: 0.5 if n % 2 == 0 else 0.0 for n in (height, width)}
    offset = {None: (0, 0), "n/2-0.5": (half[height], half[width]), "corner": (height // 2, width // 2)}[
        dialect["origin"]
    ]
    np.testing.assert_array_equal(opened["position_y"].values, members["ycoords"] + offset[0])
    np.testing.assert_array_equal(opened["position_x"].values, members["xcoords"] + offset[1])
    accounting = done.record.attrs["provenance"]["accounting"]["members"]
    assert (accounting["kept"], accounting["total"]) == (len(members), len(members))


anything = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)),
        hnp.complex_number_dtypes(),
        hnp.unicode_string_dtypes(), hnp.byte_string_dtypes(), hnp.datetime64_dtypes(), hnp.timedelta64_dtypes(),
        hnp.array_dtypes(hnp.integer_dtypes() | hnp.floating_dtypes(sizes=(32, 64))),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
)  # fmt: skip
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@pytest.mark.filterwarnings("ignore:Stored array in format")  # NumPy's remark on field names beyond Latin 1
@given(extra=anything, name=names, fortran=st.booleans())
@example(extra=np.array(1.0, dtype=">f2"), name="scalar", fortran=False)
@example(extra=np.empty((3, 0), dtype=">f8"), name="empty", fortran=True)
def test_an_unknown_member_of_any_name_and_dtype_comes_back_bit_for_bit(
    extra: np.ndarray, name: str, fortran: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("unknown")
    members = legacy_members()
    name = f"{name}_" if name in members or name in ("file", "probe", "object", "label", "Y", "metadata") else name
    if name.endswith(".npy") or "/" in name.strip("/") or name != name.strip("/"):
        name = f"x{name.replace('/', '|')}x"
    npz = folder / "scan.npz"
    np.savez(npz, **members, **{name: np.asarray(extra, order="F" if fortran else "C")})
    convert(npz)
    assert restored(npz) == read_members(npz)
    assert all(p.is_relative_to(folder) for p in folder.rglob("*"))


def test_two_conversions_give_the_same_tree_also_with_threaded_blosc_elsewhere(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(make_counts(200, 64, 64)))
    script = (
        "import sys, threading\n"
        "from numcodecs import blosc\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from pipeline.scan.declaration import Declaration\n"
        "from pipeline.scan.ingest import ingest, plan_ingest\n"
        "def force():\n"
        "    while not done.wait(0.0005):\n"
        "        blosc.use_threads = True; blosc.set_nthreads(4)\n"
        "done = threading.Event()\n"
        "thread = threading.Thread(target=force)\n"
        "if sys.argv[3] == 'threads': thread.start()\n"
        "ingest(plan_ingest(Path(sys.argv[1]), Declaration()), Path(sys.argv[2]))\n"
        "done.set()\n"
    )
    for name, how in (("a", "plain"), ("b", "plain"), ("c", "threads")):
        subprocess.run([sys.executable, "-c", script, npz, tmp_path / f"{name}.zarr", how], check=True)
    trees = [tree_bytes(tmp_path / f"{name}.zarr") for name in "abc"]
    assert trees[0] == trees[1] == trees[2]


def test_the_store_says_nothing_of_paths_and_times(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    members = legacy_members()
    first = write_legacy_npz(tmp_path / "one" / "scan.npz", members)
    second = tmp_path / "two" / "scan.npz"
    second.write_bytes(first.read_bytes())
    trees = [tree_bytes(convert(npz).record.path) for npz in (first, second)]
    assert trees[0] == trees[1]


def test_counts_wider_than_16_bits_are_stored_in_32(tmp_path: Path) -> None:
    counts = make_counts().astype(np.uint32)
    counts[4, 2, 2] = 70_000
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(counts))
    assert convert(npz).stack.dtype == np.uint32
    assert restored(npz) == read_members(npz)


def test_a_late_pixel_that_is_no_root_of_a_count_makes_the_stack_amplitude(tmp_path: Path) -> None:
    amplitude = np.sqrt(make_counts(3000, 32, 32), dtype=np.float32)
    amplitude[-1, -1, -1] = 0.1234
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(amplitude))
    done = convert(npz)
    assert (done.stack.quantity, done.stack.dtype.name) == ("amplitude", "float32")
    assert done.record.attrs["photons_scale"] is None
    assert "not uint16 counts" in done.stack.evidence
    assert restored(npz) == read_members(npz)


def test_declared_counts_that_are_none_are_refused(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(make_counts() + np.float32(0.5)))
    with pytest.raises(SourceError) as failure:
        convert(npz, quantity="counts")
    assert "--quantity intensity" in str(failure.value.hint)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.npz"]


def test_intensity_is_kept_and_handed_out_as_its_root(tmp_path: Path) -> None:
    intensity = make_counts().astype(np.float32) * np.float32(0.3)
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(intensity))
    convert(npz, quantity="intensity")
    np.testing.assert_array_equal(open_stored(npz.with_suffix(".zarr"))["diffraction"].values, intensity)
    np.testing.assert_array_equal(open_scan(npz.with_suffix(".zarr"))["diffraction"].values, np.sqrt(intensity))


@pytest.mark.parametrize("quantity", ["intensity", "amplitude"])
def test_roots_of_counts_may_be_declared_to_be_anything(quantity: str, tmp_path: Path) -> None:
    roots = np.sqrt(make_counts(), dtype=np.float32)
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(roots))
    done = convert(npz, quantity=quantity)
    assert done.stack.quantity == ("counts" if quantity == "amplitude" else "intensity")
    assert restored(npz) == read_members(npz)


def test_a_float64_stack_can_be_dropped_and_is_then_named(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((5, 8, 8))
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(stack))
    done = convert(npz, contract="data-001", drop_original=True)
    assert "legacy/diffraction" not in done.record.arrays
    report = restore(npz.with_suffix(".zarr"), tmp_path / "back.npz")
    assert len(report.cast) == 1
    assert "diffraction" in report.cast[0]
    with np.load(tmp_path / "back.npz") as back:
        np.testing.assert_array_equal(back["diffraction"], stack.astype(np.float32).astype(np.float64))
    dropped = done.record.attrs["provenance"]["accounting"]["members"]["dropped"]
    assert [entry["member"] for entry in dropped] == ["diffraction"]


def test_both_keys_with_one_content_are_kept_once_and_both_come_back(tmp_path: Path) -> None:
    counts = make_counts()
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(counts, diff3d=counts))
    done = convert(npz)
    assert not any(name.endswith("diff3d") for name in done.record.arrays)
    assert restored(npz) == read_members(npz)


def test_labels_and_bad_pixels_find_their_place(tmp_path: Path) -> None:
    counts = make_counts()
    label = np.stack([make_probe(seed=i)[0] for i in range(len(counts))])
    bad = np.zeros((8, 8), np.uint8)
    bad[1, 2] = 1
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(counts, Y=label[..., np.newaxis], bad_pixels=bad))
    convert(npz)
    stored = open_stored(npz.with_suffix(".zarr"))
    np.testing.assert_array_equal(stored["label"].values, label)
    np.testing.assert_array_equal(stored["valid"].values, bad == 0)
    assert restored(npz) == read_members(npz)


@pytest.mark.parametrize("wide", [False, True], ids=["fits complex64", "does not"])
@pytest.mark.parametrize("name", ["label", "probeGuess", "objectGuess"])
def test_complex128_is_kept_beside_only_where_complex64_loses_a_bit(name: str, wide: bool, tmp_path: Path) -> None:
    counts = make_counts()
    patches = np.stack([make_probe(seed=i)[0] for i in range(len(counts))]).astype(np.complex128)
    values = {"label": patches, "probeGuess": patches[:2], "objectGuess": patches[0]}[name]
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(counts, **{name: values / 3 if wide else values}))
    done = convert(npz)
    assert (f"legacy/{name}" in done.record.arrays) == wide
    assert restored(npz) == read_members(npz)


def test_unknown_facts_stay_null(tmp_path: Path) -> None:
    amplitude = np.random.default_rng(0).random((5, 8, 8), dtype=np.float32)
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(amplitude))
    attrs = convert(npz, contract="data-001").record.attrs
    unknown = ("photons_scale", "pixel_size_m", "wavelength_m", "energy_eV", "detector_distance_m")
    assert [attrs[name] for name in unknown] == [None] * 5
    assert attrs["photons_per_frame"] == {"measured": None, "declared": None}


def test_photons_are_measured_and_what_metadata_say_is_kept_beside(tmp_path: Path) -> None:
    counts = make_counts()
    metadata = object_metadata({"physics_parameters": {"nphotons": 1e9}})
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(counts, _metadata=metadata))
    photons = convert(npz).record.attrs["photons_per_frame"]
    assert photons == {"measured": counts.sum() / len(counts), "declared": 1e9}


def test_metres_become_pixels_and_the_numbers_stay(tmp_path: Path) -> None:
    members = legacy_members()
    metres = {key: members[key] * 2e-8 for key in ("xcoords", "ycoords")}
    npz = write_legacy_npz(tmp_path / "scan.npz", {**members, **metres})
    convert(npz, positions="metre", pixel_size_m=2e-8)
    stored = open_stored(npz.with_suffix(".zarr"))
    np.testing.assert_allclose(stored["position_x"].values, members["xcoords"], rtol=1e-12)
    assert stored.attrs["pixel_size_m"] == 2e-8
    assert restored(npz) == read_members(npz)
