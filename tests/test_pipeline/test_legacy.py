"""What a legacy file means is proven, declared or refused; nothing is guessed."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, PipelineError, SourceError
from pipeline.scan.declaration import Declaration, declared_for
from pipeline.scan.frames import StackSource
from pipeline.scan.ingest import IngestPlan, plan_ingest
from pipeline.scan.legacy import name_members
from pipeline.scan.npz import open_npz
from tests.builders import (
    legacy_members,
    make_counts,
    make_probe,
    object_metadata,
    write_legacy_npz,
)

N_FRAMES, HEIGHT, WIDTH = 12, 6, 5


def members_of(**more: Any) -> dict[str, np.ndarray]:
    return legacy_members(make_counts(N_FRAMES, HEIGHT, WIDTH), **more)


def look(folder: Path, members: dict[str, np.ndarray], **declared: Any) -> IngestPlan:
    """What a file of these members would become."""
    return plan_ingest(write_legacy_npz(folder / "s.npz", members), Declaration(**declared))


def refusal(folder: Path, members: dict[str, np.ndarray], **declared: Any) -> PipelineError:
    with pytest.raises(SourceError) as raised:
        look(folder, members, **declared)
    assert str(folder / "s.npz") in raised.value.message
    return raised.value


def in_order(frames: np.ndarray, axes: str) -> np.ndarray:
    return np.ascontiguousarray(frames.transpose(["fyx".index(axis) for axis in axes]))


def rooted(frames: np.ndarray, scale: float = 1.0) -> np.ndarray:
    return (np.sqrt(frames.astype(np.float64)) / scale).astype(np.float32)


# --- the order of the axes --------------------------------------------------------------------------------------------

SIDES = st.integers(2, 5)


@given(n=SIDES, height=SIDES, width=SIDES, axes=st.sampled_from(["fyx", "yxf"]), has_probe=st.booleans())
@example(n=3, height=3, width=3, axes="fyx", has_probe=True)
@example(n=3, height=3, width=4, axes="yxf", has_probe=True)
@example(n=3, height=3, width=4, axes="yxf", has_probe=False)
def test_the_true_order_is_found_or_the_file_is_refused(
    tmp_path: Path, n: int, height: int, width: int, axes: str, has_probe: bool
) -> None:
    frames = make_counts(n, height, width)
    members = legacy_members(frames, diffraction=in_order(frames, axes))
    if not has_probe:
        del members["probeGuess"]
    try:
        roles = look(tmp_path, members).layout.roles
    except SourceError as refused:
        reason = refused
    else:
        assert (roles.axes, roles.n_frames, roles.frame_shape) == (axes, n, (height, width))
        return
    assert (reason.code, reason.hint) == ("npz.ambiguous_axes", "--axes fyx or --axes yxf")
    sides = (height, width, n) if axes == "yxf" else (n, height, width)
    assert sides[0] == sides[-1] == n, "one order alone has that many frames"
    assert not has_probe or n == height == width, "the probe tells the orders apart"


@given(axes=st.sampled_from(["fyx", "yxf", "yfx"]))
def test_a_declared_order_settles_a_cube(tmp_path: Path, axes: str) -> None:
    frames = make_counts(5, 5, 5)
    roles = look(tmp_path, legacy_members(frames, diffraction=in_order(frames, axes)), axes=axes).layout.roles
    assert (roles.axes, roles.evidence[1]) == (axes, f"{axes} (declared)")


def test_a_declared_order_that_the_positions_contradict_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, members_of(), axes="yxf")
    assert (error.code, "5 frames, but there are 12 positions" in error.message) == ("npz.length_mismatch", True)


def test_frames_on_the_middle_axis_are_taken_only_when_declared(tmp_path: Path) -> None:
    frames = make_counts(N_FRAMES, HEIGHT, WIDTH)
    members = legacy_members(frames, diffraction=in_order(frames, "yfx"))
    error = refusal(tmp_path, members)
    assert (error.code, error.hint) == ("npz.ambiguous_axes", "--axes yfx")
    assert look(tmp_path, members, axes="yfx").layout.roles.frame_shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("axes", ["fyx", "yxf"])
def test_a_trailing_axis_of_one_is_no_axis(tmp_path: Path, axes: str) -> None:
    frames = make_counts(N_FRAMES, HEIGHT, WIDTH)
    roles = look(tmp_path, legacy_members(frames, diffraction=in_order(frames, axes)[..., np.newaxis])).layout.roles
    assert (roles.axes, roles.frame_shape) == (axes, (HEIGHT, WIDTH))


@given(shape=st.lists(st.sampled_from([0, 1, 2, N_FRAMES]), max_size=5))
def test_only_three_axes_and_a_trailing_one_make_a_stack(tmp_path: Path, shape: list[int]) -> None:
    is_stack = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    codes = {"npz.stack_rank"} if not is_stack else {"npz.empty_stack"} if 0 in shape else set()
    try:
        look(tmp_path, members_of(diffraction=np.zeros(shape, np.uint16)))
    except SourceError as refused:
        found = refused.code
    else:
        found = None
    assert found in (codes or {None, "npz.length_mismatch", "npz.ambiguous_axes"})


@given(missing=st.integers(-5, 5).filter(bool), axes=st.sampled_from(["fyx", "yxf"]))
def test_positions_that_are_not_as_many_as_the_frames_are_refused(tmp_path: Path, missing: int, axes: str) -> None:
    frames = make_counts(20, HEIGHT, WIDTH)
    line = np.linspace(0, 50, 20 + missing)
    error = refusal(tmp_path, legacy_members(frames, diffraction=in_order(frames, axes), xcoords=line, ycoords=line))
    assert (error.code, f"{20 + missing} positions" in error.message) == ("npz.length_mismatch", True)


def test_a_frame_that_no_detector_has_is_refused_by_its_header(tmp_path: Path) -> None:
    members = dict(open_npz(write_legacy_npz(tmp_path / "s.npz", members_of())).members)
    header = replace(members["diffraction"].header, shape=(N_FRAMES, 20_000, 20_000))
    members["diffraction"] = replace(members["diffraction"], header=header)
    with pytest.raises(SourceError) as raised:
        name_members(members, Declaration(), where="s.npz")
    assert raised.value.code == "npz.frame_size"


# --- which member is the stack ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
def test_the_only_stack_is_taken(tmp_path: Path, key: str) -> None:
    counts = make_counts(N_FRAMES, HEIGHT, WIDTH)
    assert look(tmp_path, legacy_members(counts, key=key)).layout.roles.stack == key


def test_a_file_without_a_stack_is_refused_with_its_members(tmp_path: Path) -> None:
    error = refusal(tmp_path, members_of(diffraction=None))
    assert (error.code, "xcoords, ycoords, probeGuess" in error.message) == ("npz.no_stack", True)


def test_two_stacks_of_the_same_bytes_are_one(tmp_path: Path) -> None:
    counts = make_counts(N_FRAMES, HEIGHT, WIDTH)
    roles = look(tmp_path, members_of(diff3d=counts)).layout.roles
    assert roles.stack == "diffraction"
    assert {p.member: p.twin_of for p in roles.placements if p.twin_of} == {"diff3d": "diffraction"}


DIFFERENT = {
    "other values": make_counts(N_FRAMES, HEIGHT, WIDTH, seed=9),
    "another dtype": make_counts(N_FRAMES, HEIGHT, WIDTH).astype(np.float32),
    "another order of the bytes": np.asfortranarray(make_counts(N_FRAMES, HEIGHT, WIDTH)),
    "another shape": make_counts(N_FRAMES, HEIGHT, WIDTH)[..., np.newaxis],
}


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT)
def test_two_different_stacks_are_refused_with_both_described(tmp_path: Path, other: np.ndarray) -> None:
    error = refusal(tmp_path, members_of(diff3d=other))
    assert (error.code, error.hint) == (
        "npz.ambiguous_stack",
        "--key diffraction or --key diff3d (the other stays in legacy/)",
    )
    assert str(other.shape) in error.message


@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
def test_a_declared_key_settles_which_of_two_stacks_is_the_scan(tmp_path: Path, key: str) -> None:
    counts = make_counts(N_FRAMES, HEIGHT, WIDTH, seed=9)
    roles = look(tmp_path, members_of(diff3d=counts), key=key).layout.roles
    assert {p.member for p in roles.placements if p.variable == "diffraction"} == {key}
    assert all(p.twin_of is None for p in roles.placements)


def test_a_declared_key_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, members_of(), key="diff3d").code == "npz.no_stack"


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        ("c8", "npz.complex_stack"),
        ("?", "npz.stack_dtype"),
        ("U3", "npz.stack_dtype"),
        ("M8[s]", "npz.stack_dtype"),
        ("i2,i2", "npz.stack_dtype"),
        (np.longdouble, "npz.stack_dtype"),
    ],
)
def test_a_stack_of_another_kind_of_values_is_refused(tmp_path: Path, dtype: Any, code: str) -> None:
    assert refusal(tmp_path, members_of(diffraction=np.zeros((N_FRAMES, HEIGHT, WIDTH), dtype))).code == code


# --- positions --------------------------------------------------------------------------------------------------------


@given(spread=st.floats(1e-9, 1e4), offset=st.floats(-1e3, 1e3), vertical=st.booleans())
@example(spread=1.0, offset=0.0, vertical=False)
@example(spread=math.nextafter(1.0, 2), offset=0.0, vertical=True)
def test_only_coordinates_that_spread_over_more_than_one_are_pixels_unasked(
    tmp_path: Path, spread: float, offset: float, vertical: bool
) -> None:
    line, point = np.linspace(offset, offset + spread, N_FRAMES), np.full(N_FRAMES, offset)
    members = members_of(xcoords=point, ycoords=line) if vertical else members_of(xcoords=line, ycoords=point)
    if np.ptp(line) > 1:
        assert look(tmp_path, members).layout.position_unit == "pixel"
    else:
        error = refusal(tmp_path, members)
        assert (error.code, "--positions metre --pixel-size-m" in (error.hint or "")) == (
            "npz.ambiguous_positions",
            True,
        )


def test_one_frame_has_no_spread_and_needs_the_unit(tmp_path: Path) -> None:
    members = legacy_members(make_counts(1, HEIGHT, WIDTH))
    assert refusal(tmp_path, members).code == "npz.ambiguous_positions"
    assert look(tmp_path, members, positions="pixel").layout.position_unit == "pixel"


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_a_declared_unit_holds_whatever_the_spread(tmp_path: Path, scale: float) -> None:
    line = np.linspace(0, 40 * scale, N_FRAMES)
    layout = look(tmp_path, members_of(xcoords=line, ycoords=line), positions="metre", pixel_size_m=2e-8).layout
    assert (layout.position_unit, layout.pixel_size_m) == ("metre", 2e-8)


def test_metres_without_a_pixel_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="pixel size") as raised:
        declared_for(Path("scan.npz"), Declaration(positions="metre"))
    assert raised.value.hint == "--pixel-size-m"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["xcoords", "ycoords"])
def test_a_coordinate_that_is_not_finite_is_named(tmp_path: Path, key: str, value: float) -> None:
    line = np.linspace(0, 40, N_FRAMES)
    line[3] = value
    error = refusal(tmp_path, members_of(**{key: line}), positions="pixel")
    assert (error.code, f"{key}[3] is {value}" in error.message) == ("npz.bad_value", True)


@pytest.mark.parametrize("key", ["xcoords", "ycoords"])
def test_a_missing_coordinate_is_refused(tmp_path: Path, key: str) -> None:
    error = refusal(tmp_path, members_of(**{key: None}))
    assert (error.code, f"no '{key}'" in error.message) == ("npz.no_positions", True)


def test_coordinates_of_different_length_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, members_of(xcoords=np.linspace(0, 40, N_FRAMES + 1)))
    assert "13 xcoords but 12 ycoords" in error.message


@pytest.mark.parametrize(
    "values", [np.zeros((N_FRAMES, 1)), np.zeros(N_FRAMES, "c8"), np.zeros(N_FRAMES, "U1"), np.zeros(N_FRAMES, "?")]
)
def test_coordinates_are_one_number_per_frame(tmp_path: Path, values: np.ndarray) -> None:
    assert refusal(tmp_path, members_of(xcoords=values)).code == "npz.positions_shape"


@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2", "u8", "f2"])
def test_coordinates_may_be_any_real_numbers(tmp_path: Path, dtype: str) -> None:
    line = np.arange(N_FRAMES).astype(dtype)
    assert look(tmp_path, members_of(xcoords=line, ycoords=line)).layout.position_unit == "pixel"


def test_the_origin_is_the_default_unless_declared(tmp_path: Path) -> None:
    assert look(tmp_path, members_of()).layout.evidence["position_origin"] == "n/2 (the default; no file tells)"
    layout = look(tmp_path, members_of(), position_origin="corner").layout
    assert (layout.position_origin, layout.evidence["position_origin"]) == ("corner", "corner (declared)")


# --- what the frames measure ------------------------------------------------------------------------------------------

COUNTS = make_counts(N_FRAMES, HEIGHT, WIDTH)
NOISE = np.random.default_rng(3).random(COUNTS.shape)
DOMAINS = {"count_intensity": "counts", "normalized_amplitude": "amplitude"}


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u4", "i4", "i8"])
def test_integers_are_counts(tmp_path: Path, dtype: str) -> None:
    assert look(tmp_path, members_of(diffraction=COUNTS.astype(dtype))).layout.quantity == "counts"


@pytest.mark.parametrize("quantity", ["amplitude", "intensity"])
def test_integers_declared_as_something_else_are_refused(tmp_path: Path, quantity: str) -> None:
    assert refusal(tmp_path, members_of(), quantity=quantity).code == "npz.quantity_contradiction"


@given(scale=st.floats(1e-3, 1e3), dtype=st.sampled_from(["<f4", ">f4", "<f8"]))
def test_roots_of_counts_are_proven_amplitudes(tmp_path: Path, scale: float, dtype: str) -> None:
    layout = look(tmp_path, members_of(diffraction=rooted(COUNTS, scale).astype(dtype))).layout
    assert layout.quantity == "amplitude"
    assert layout.scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_counts_held_as_float_are_refused_because_all_are_squares(tmp_path: Path, dtype: str) -> None:
    error = refusal(tmp_path, members_of(diffraction=COUNTS.astype(dtype)))
    assert (error.code, "perfect square" in error.message) == ("npz.ambiguous_quantity", True)
    assert error.hint is not None
    assert "--quantity counts|intensity|amplitude" in error.hint
    assert "--contract data-001" in error.hint


def test_other_floats_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, members_of(diffraction=NOISE))
    assert (error.code, "perfect square" in error.message) == ("npz.ambiguous_quantity", False)


def test_a_stack_of_zeros_proves_nothing(tmp_path: Path) -> None:
    assert refusal(tmp_path, members_of(diffraction=np.zeros(COUNTS.shape))).code == "npz.ambiguous_quantity"


@pytest.mark.parametrize("frames", [NOISE, COUNTS.astype(np.float32), rooted(COUNTS)], ids=["noise", "counts", "roots"])
@pytest.mark.parametrize("quantity", ["counts", "intensity", "amplitude"])
def test_a_declared_quantity_holds_for_any_floats(tmp_path: Path, frames: np.ndarray, quantity: str) -> None:
    metadata = object_metadata({"measurement_domain": "count_intensity"})
    frames = np.rint(frames) if quantity == "counts" else frames
    layout = look(tmp_path, members_of(diffraction=frames, _metadata=metadata), quantity=quantity).layout
    assert (layout.quantity, "(declared)" in layout.evidence["quantity"]) == (quantity, True)


def test_the_contract_declares_floats_to_be_amplitudes(tmp_path: Path) -> None:
    layout = look(tmp_path, members_of(diffraction=NOISE), contract="data-001").layout
    assert (layout.quantity, "data-001" in layout.evidence["quantity"]) == ("amplitude", True)


@pytest.mark.parametrize("name", ["_metadata", "metadata"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_domain_that_the_metadata_state_is_believed(tmp_path: Path, domain: str, name: str) -> None:
    metadata = {name: object_metadata({"measurement_domain": domain})}
    frames = COUNTS.astype(np.float32) if DOMAINS[domain] == "counts" else NOISE
    layout = look(tmp_path, members_of(diffraction=frames, **metadata)).layout
    assert (layout.quantity, domain in layout.evidence["quantity"]) == (DOMAINS[domain], True)


@pytest.mark.parametrize(
    "domain", ["amplitude-ish", "", None, 5, ["count_intensity"], {"count_intensity": 1}], ids=repr
)
def test_a_domain_of_unknown_meaning_settles_nothing(tmp_path: Path, domain: object) -> None:
    metadata = object_metadata({"measurement_domain": domain})
    assert refusal(tmp_path, members_of(diffraction=NOISE, _metadata=metadata)).code == "npz.ambiguous_quantity"


def test_metadata_in_a_unicode_array_are_believed_too(tmp_path: Path) -> None:
    metadata = np.array('{"measurement_domain": "count_intensity"}')
    frames = COUNTS.astype(np.float32)
    assert look(tmp_path, members_of(diffraction=frames, _metadata=metadata)).layout.quantity == "counts"


@pytest.mark.parametrize("axes", ["fyx", "yxf", "yfx"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("after_all", [False, True], ids=["first look", "after reading all"])
def test_the_first_frames_are_the_same_however_their_bytes_lie(
    tmp_path: Path, axes: str, order: Any, after_all: bool
) -> None:
    npz = open_npz(write_legacy_npz(tmp_path / "s.npz", {"a": np.asarray(in_order(COUNTS, axes), order=order)}))
    with StackSource(npz, npz.members["a"], axes=axes, shape=COUNTS.shape, beside=tmp_path / "t") as source:
        if after_all:
            np.testing.assert_array_equal(np.concatenate(list(source.blocks(5))), COUNTS)
        np.testing.assert_array_equal(source.head(3 * source.frame_bytes + 1), COUNTS[:3])
        np.testing.assert_array_equal(source.head(1), COUNTS[:1])


def test_gathering_frames_makes_no_file_that_could_be_left_behind(tmp_path: Path) -> None:
    npz = open_npz(write_legacy_npz(tmp_path / "s.npz", {"a": in_order(COUNTS, "yxf")}))
    with StackSource(npz, npz.members["a"], axes="yxf", shape=COUNTS.shape, beside=tmp_path / "t") as source:
        for _ in source.blocks(5):
            assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("axes", ["fyx", "yxf", "yfx"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_proof_is_the_same_however_the_bytes_lie(tmp_path: Path, axes: str, order: Any) -> None:
    roots = rooted(COUNTS, 0.3)
    stack = np.asarray(in_order(roots, axes), order=order)
    evidence = look(tmp_path, members_of(diffraction=stack), axes=axes).layout.evidence["quantity"]
    assert evidence == look(tmp_path, members_of(diffraction=roots)).layout.evidence["quantity"]


def test_looking_writes_nothing_even_where_frames_are_not_contiguous(tmp_path: Path) -> None:
    path = write_legacy_npz(tmp_path / "s.npz", members_of(diffraction=in_order(rooted(COUNTS), "yxf")))
    os.utime(tmp_path, ns=(0, 0))  # a file that comes and goes leaves a younger folder
    plan_ingest(path, Declaration())
    assert tmp_path.stat().st_mtime_ns == 0


# --- photons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "photons"),
    [
        ({"nphotons": 1e5}, 1e5),
        ({"physics_parameters": {"nphotons": 100000}}, 1e5),
        ({"physics_parameters": {"nphotons": 2e5}, "nphotons": 1e5}, 2e5),
        ({"physics_parameters": {"nphotons": -1}, "nphotons": 1e5}, 1e5),
        ({"physics_parameters": [1], "nphotons": 1e5}, 1e5),
        ({}, None),
        ({"nphotons": 0}, None),
        ({"nphotons": "1e5"}, None),
        ({"nphotons": True}, None),
        ({"nphotons": 10**400}, None),
    ],
    ids=str,
)
def test_photons_are_what_the_metadata_declare_and_never_a_default(
    tmp_path: Path, metadata: object, photons: float | None
) -> None:
    found = look(tmp_path, members_of(_metadata=object_metadata(metadata))).layout.photons_declared
    assert found == photons


# --- companions -------------------------------------------------------------------------------------------------------

SQUARE = make_counts(N_FRAMES, 6, 6)


def placed(folder: Path, **more: Any) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Variable of each of the added members, and the warnings."""
    layout = look(folder, legacy_members(SQUARE, **{"probeGuess": None, "objectGuess": None, **more})).layout
    return {p.member: p.variable for p in layout.roles.placements if p.member in more}, layout.warnings


@pytest.mark.parametrize("key", ["probeGuess", "probe"])
@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (1, 6, 6), (3, 6, 6), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("dtype", ["c8", "c16", ">c8"])
def test_a_complex_array_as_large_as_a_frame_is_the_probe(
    tmp_path: Path, key: str, shape: tuple[int, ...], dtype: str
) -> None:
    assert placed(tmp_path, **{key: np.ones(shape, dtype)}) == ({key: "probe"}, ())


@pytest.mark.parametrize(
    "probe",
    [np.ones((6, 6)), np.ones((5, 6), "c8"), np.ones((6, 6, 2), "c8"), np.ones((1, 1, 6, 6), "c8"), np.ones(6, "c8")],
    ids=lambda probe: f"{probe.shape} {probe.dtype}",
)
def test_a_probe_that_does_not_fit_is_kept_aside_with_a_warning(tmp_path: Path, probe: np.ndarray) -> None:
    placements, warnings = placed(tmp_path, probeGuess=probe)
    assert placements == {"probeGuess": None}
    assert ["'probeGuess'" in w and str(probe.shape) in w for w in warnings] == [True]


def test_the_first_probe_that_fits_is_the_probe(tmp_path: Path) -> None:
    probe = make_probe(6, 6)[0]
    assert placed(tmp_path, probe=probe, probeGuess=probe)[0] == {"probeGuess": "probe", "probe": None}


@pytest.mark.parametrize("key", ["label", "Y", "ground_truth_patches"])
@pytest.mark.parametrize("shape", [(N_FRAMES, 6, 6), (N_FRAMES, 6, 6, 1)], ids=str)
def test_complex_patches_of_every_frame_are_the_label(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    assert placed(tmp_path, **{key: np.ones(shape, "c8")}) == ({key: "label"}, ())


@pytest.mark.parametrize(
    "label",
    [np.ones((N_FRAMES, 6, 6)), np.ones((3, 6, 6, 4), "c8"), np.ones((N_FRAMES - 1, 6, 6), "c8")],
    ids=lambda label: f"{label.shape} {label.dtype}",
)
def test_a_label_that_does_not_fit_is_kept_aside_with_a_warning(tmp_path: Path, label: np.ndarray) -> None:
    placements, warnings = placed(tmp_path, Y=label)
    assert (placements, len(warnings)) == ({"Y": None}, 1)


@pytest.mark.parametrize(
    ("array", "variable"),
    [
        (np.ones((20, 21), "c16"), "object"),
        (np.ones((N_FRAMES, N_FRAMES), "c8"), "object"),
        (np.ones((20, 21)), None),
        (np.ones((2, 20, 21), "c8"), None),
        (np.ones((0, 21), "c8"), None),
    ],
    ids=lambda value: getattr(value, "shape", value),
)
def test_a_complex_picture_is_the_object(tmp_path: Path, array: np.ndarray, variable: str | None) -> None:
    assert placed(tmp_path, objectGuess=array)[0] == {"objectGuess": variable}


@pytest.mark.parametrize(
    ("array", "variable"),
    [
        (np.zeros((6, 6), bool), "valid"),
        (np.zeros((6, 6), "u1"), "valid"),
        (np.zeros((6, 6)), None),
        (np.zeros((5, 6), bool), None),
    ],
    ids=lambda value: getattr(value, "shape", value),
)
def test_bad_pixels_as_large_as_a_frame_are_the_mask(tmp_path: Path, array: np.ndarray, variable: str | None) -> None:
    assert placed(tmp_path, bad_pixels=array)[0] == {"bad_pixels": variable}


@given(names=st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), max_size=4, unique=True))
def test_every_member_is_placed_exactly_once(tmp_path: Path, names: list[str]) -> None:
    names = [name for name in names if name != "file"]  # a parameter of numpy.savez
    members = {**{name: np.arange(3) for name in names}, **legacy_members(SQUARE)}
    placements = look(tmp_path, members).layout.roles.placements
    assert [p.member for p in placements] == list(members)


@pytest.mark.parametrize("member", ["objectGuess", "extra", "xcoords", "diffraction"])
def test_an_object_array_is_refused_unopened(tmp_path: Path, member: str) -> None:
    error = refusal(tmp_path, members_of(**{member: np.array([{"a": 1}, None], dtype=object)}))
    assert (error.code, f"'{member}'" in error.message) == ("npz.object_member", True)


@pytest.mark.parametrize("content", [{"a": 1}, None, ["{}"], "no JSON", "[1]", '{"a": NaN}'], ids=repr)
@pytest.mark.parametrize("member", ["_metadata", "metadata"])
def test_metadata_in_a_pickle_that_are_no_json_object_are_refused(tmp_path: Path, member: str, content: object) -> None:
    array = np.empty((), dtype=object)
    array[()] = content
    error = refusal(tmp_path, members_of(**{member: array}))
    assert (error.code, f"'{member}'" in error.message) == ("npz.object_member", True)


def test_a_pickle_behind_readable_metadata_is_refused_too(tmp_path: Path) -> None:
    members = members_of(_metadata=object_metadata({"a": 1}), metadata=np.array({"b": 1}, dtype=object))
    assert refusal(tmp_path, members).code == "npz.object_member"


# --- declarations -----------------------------------------------------------------------------------------------------


def beside(folder: Path, toml: str) -> Path:
    """An NPZ's name with this TOML beside it."""
    (folder / "s.toml").write_text(toml)
    return folder / "s.npz"


def test_the_toml_beside_a_file_declares(tmp_path: Path) -> None:
    toml = 'quantity = "counts"\naxes = "yxf"\npixel_size_m = 1e-8\npositions = "metre"\n'
    declared = declared_for(beside(tmp_path, toml), Declaration())
    assert declared == Declaration(quantity="counts", axes="yxf", pixel_size_m=1e-8, positions="metre")


def test_an_option_wins_over_the_toml(tmp_path: Path) -> None:
    path = beside(tmp_path, 'quantity = "counts"\naxes = "yxf"\n')
    declared = declared_for(path, Declaration(quantity="intensity"))
    assert declared == Declaration(quantity="intensity", axes="yxf")


def test_an_option_for_quantity_or_contract_answers_the_whole_question(tmp_path: Path) -> None:
    path = beside(tmp_path, 'quantity = "intensity"')
    assert declared_for(path, Declaration(contract="data-001")) == Declaration(contract="data-001")
    with pytest.raises(ConfigError, match="amplitude"):
        declared_for(path, Declaration(contract="data-001", quantity="counts"))


def test_frames_that_see_beyond_the_object_are_warned_of(tmp_path: Path) -> None:
    (warning,) = look(tmp_path, members_of(xcoords=np.arange(len(COUNTS)) * 9.0)).layout.warnings
    assert "beyond the object" in warning


def test_a_probe_that_is_not_finite_is_kept_in_legacy_only_and_said(tmp_path: Path) -> None:
    probe = make_probe(*COUNTS.shape[1:])[0]
    probe[0, 0] = np.nan
    layout = look(tmp_path, members_of(probeGuess=probe)).layout
    assert "probe" not in layout.roles.kind
    assert any("NaN" in warning for warning in layout.warnings)


@pytest.mark.parametrize("name", ["objectGuess", "bad_pixels", "label", "probeGuess"])
def test_a_known_name_of_a_wrong_shape_goes_to_legacy_and_is_said(tmp_path: Path, name: str) -> None:
    layout = look(tmp_path, members_of(**{name: np.ones((2, 2, 2, 2), np.complex64)})).layout
    assert any(repr(name) in warning for warning in layout.warnings)


def test_without_a_toml_the_options_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('axes = "yxf"')
    assert declared_for(tmp_path / "s.npz", Declaration(key="diff3d")) == Declaration(key="diff3d")


def test_what_the_toml_declares_is_in_the_plan(tmp_path: Path) -> None:
    path = write_legacy_npz(beside(tmp_path, 'quantity = "intensity"'), members_of(diffraction=NOISE))
    assert plan_ingest(path, Declaration()).declaration == Declaration(quantity="intensity")


@pytest.mark.parametrize(
    ("toml", "code", "said"),
    [
        ('quantiy = "counts"', "config.unknown_key", "did you mean quantity?"),
        ("zzz = 1", "config.unknown_key", "known keys: axes, contract"),
        ("quantity = 1", "config.type", "quantity is 1"),
        ("pixel_size_m = true", "config.type", "pixel_size_m is True"),
        ('pixel_size_m = "1e-8"', "config.type", "pixel_size_m is '1e-8'"),
        ("[quantity]\na = 1", "config.type", "quantity is {'a': 1}"),
        ('quantity = "photons"', "config.choice", "expected one of counts, intensity, amplitude"),
        ("pixel_size_m = -1.0", "config.range", "not between"),
        ("pixel_size_m = nan", "config.range", "not between"),
        ("pixel_size_m = inf", "config.range", "not between"),
        ('positions = "metre"', "config.pixel_size", "--pixel-size-m"),
        ("quantity = ", "config.toml", "not valid TOML"),
        ("\x00", "config.toml", "not valid TOML"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(tmp_path: Path, toml: str, code: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        declared_for(beside(tmp_path, toml), Declaration())
    assert (raised.value.code, said in f"{raised.value.message} {raised.value.hint}") == (code, True)


def test_a_toml_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        declared_for(tmp_path / "s.npz", Declaration())
