"""What the members of a legacy NPZ mean, with the evidence, or a refusal that names the option that settles it.

Pure: headers and small facts in, a frozen `LegacyLayout` out. Decision order: explicit declaration, metadata in
the file, evidence in the data, refusal. Codes that begin with `npz.ambiguous_` are those an option settles.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.scan.declaration import STACK_KEYS, Declaration
from pipeline.scan.geometry import PIXEL_SPREAD, origin_offset, spread
from pipeline.scan.npy import NpyHeader
from pipeline.scan.npz import Member
from pipeline.scan.quantity import NO_EVIDENCE, SqrtEvidence

PROBE_KEYS: Final = ("probeGuess", "probe")
OBJECT_KEYS: Final = ("objectGuess", "object")
LABEL_KEYS: Final = ("label", "Y", "ground_truth_patches")
METADATA_KEYS: Final = ("_metadata", "metadata")
_OPTIONAL: Final = (
    ("probe", "probe", PROBE_KEYS), ("object", "object", OBJECT_KEYS), ("label", "label", LABEL_KEYS),
    ("mask of bad pixels", "valid", ("bad_pixels",)),
)  # fmt: skip
MAX_FRAME_BYTES: Final = 256 << 20
"""Blocks are whole frames, so this bounds memory; a 16-megapixel frame of float64 has half of it."""
UNTOLD_ORIGIN: Final = "n/2 (the default; no file tells)"
_MARGIN: Final = 1.0
DOMAINS: Final = {"count_intensity": "counts", "normalized_amplitude": "amplitude"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a member goes: a variable of the scan, `legacy/` verbatim, or nowhere new because it is a twin's copy.

    A member with a variable is also kept in legacy/ where the variable cannot give its bytes back.
    """

    member: str
    variable: str | None = None
    twin_of: str | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Which member is what, from headers alone."""

    stack: str
    axes: str
    n_frames: int
    frame_shape: tuple[int, int]
    placements: tuple[Placement, ...]
    metadata: str | None
    evidence: tuple[str, ...]

    def without(self, variable: str) -> Roles:
        """The same roles, with the member of `variable` kept in legacy/ only."""
        kept = (replace(p, variable=None) if p.variable == variable else p for p in self.placements)
        return replace(self, placements=tuple(kept))

    @property
    def kind(self) -> Mapping[str, str]:
        """Variable name -> member name."""
        return {p.variable: p.member for p in self.placements if p.variable is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was read to decide: coordinates (n,), the metadata's JSON, and what a bounded sample of frames shows.

    `sample` says whether floats are roots of counts, `centred` whether zero frequency lies in the middle,
    `probe_finite` whether the probe is made of numbers.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    metadata: Mapping[str, object] | None
    sample: SqrtEvidence = NO_EVIDENCE
    centred: bool = True
    probe_finite: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class LegacyLayout:
    """What a file means: the plan of its conversion."""

    roles: Roles
    quantity: str
    scale: float | None
    position_unit: str
    position_origin: str
    pixel_size_m: float | None
    photons_declared: float | None
    evidence: Mapping[str, str]
    warnings: tuple[str, ...]


def name_members(members: Mapping[str, Member], declaration: Declaration, *, where: str) -> Roles:
    """Which member plays which part.

    Raises
    ------
    SourceError
        No stack, two different ones, object arrays, a stack that is no stack, axes that are not certain.
    """
    _refuse_objects(members, where)
    stack, twin, key_evidence = _choose_stack(members, declaration, where)
    shape = _stack_shape(members[stack], where)
    for key in ("xcoords", "ycoords"):
        if key not in members:
            raise SourceError(
                f"{where}: no {key!r} among {', '.join(members)}; a scan needs a position for every frame",
                code="npz.no_positions",
            )
    n_positions = _position_count(members, where)
    probe = _first(members, PROBE_KEYS)
    axes, axes_evidence = _choose_axes(
        shape, n_positions, members[probe].header.shape if probe else None, declaration, where
    )
    sizes = dict(zip(axes, shape, strict=True))
    frame = (sizes["y"], sizes["x"])
    if math.prod(frame) * members[stack].header.dtype.itemsize > MAX_FRAME_BYTES:
        raise SourceError(f"{where}: a frame of {frame} pixels; no detector is that large", code="npz.frame_size")
    parts = {stack: "diffraction", "xcoords": "position_x", "ycoords": "position_y"}
    parts |= _optional_parts(members, sizes["f"], frame)
    placements = [_placement(name, parts, twin, stack) for name in members]
    return Roles(
        stack=stack,
        axes=axes,
        n_frames=sizes["f"],
        frame_shape=frame,
        placements=tuple(placements),
        metadata=_first(members, METADATA_KEYS),
        evidence=(key_evidence, axes_evidence),
    )


def _placement(name: str, parts: Mapping[str, str], twin: str | None, stack: str) -> Placement:
    if name == twin:
        return Placement(member=name, twin_of=stack, why=f"the same bytes as {stack!r}")
    if name in parts:
        return Placement(member=name, variable=parts[name])
    return Placement(member=name, why="no place in the schema")


def _refuse_objects(members: Mapping[str, Member], where: str) -> None:
    text = _first(members, METADATA_KEYS)
    bad = [name for name, m in members.items() if m.is_object and not (name == text and _is_single(m))]
    if bad:
        raise SourceError(
            f"{where}: member {bad[0]!r} is an object array {members[bad[0]].header.shape}, that is a pickle; only a "
            f"lone JSON string in {text or ' or '.join(METADATA_KEYS)} is read, and nothing is ever unpickled",
            code="npz.object_member",
            hint="save that member again as numbers or text",
        )


def _is_single(member: Member) -> bool:
    return member.header.shape in ((), (1,))


def _first(members: Mapping[str, Member], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in members), None)


def _choose_stack(members: Mapping[str, Member], declaration: Declaration, where: str) -> tuple[str, str | None, str]:
    present = [key for key in STACK_KEYS if key in members]
    if declaration.key is not None:
        if declaration.key not in present:
            raise SourceError(f"{where}: no {declaration.key!r} among {', '.join(members)}", code="npz.no_stack")
        return declaration.key, None, f"{declaration.key!r} (declared)"
    if not present:
        raise SourceError(
            f"{where}: neither 'diffraction' nor 'diff3d' among {', '.join(members) or 'no members'}",
            code="npz.no_stack",
        )
    if len(present) == 1:
        return present[0], None, f"{present[0]!r}, the only stack"
    one, two = (members[key] for key in present)
    if (one.crc32, one.size, one.header.prefix) == (two.crc32, two.size, two.header.prefix):
        return present[0], present[1], f"{present[0]!r} and {present[1]!r} hold the same bytes"
    raise SourceError(
        f"{where}: 'diffraction' {one.describe()} and 'diff3d' {two.describe()} differ; only one is the scan",
        code="npz.ambiguous_stack",
        hint="--key diffraction or --key diff3d (the other stays in legacy/)",
    )


def _stack_shape(member: Member, where: str) -> tuple[int, int, int]:
    dtype, shape = member.header.dtype, member.header.shape
    if dtype.kind == "c":
        raise SourceError(
            f"{where}: {member.name!r} is complex ({dtype.str}); frames are counts, intensity or amplitude",
            code="npz.complex_stack",
        )
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise SourceError(
            f"{where}: {member.name!r} has dtype {dtype.str}; expected integers or floats", code="npz.stack_dtype"
        )
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise SourceError(
            f"{where}: {member.name!r} has shape {shape}; expected three axes (frames, y, x in some order), or four "
            f"with a trailing 1",
            code="npz.stack_rank",
        )
    if 0 in shape:
        raise SourceError(f"{where}: {member.name!r} is empty, shape {shape}", code="npz.empty_stack")
    return shape[0], shape[1], shape[2]


def _position_count(members: Mapping[str, Member], where: str) -> int:
    headers = {key: members[key].header for key in ("xcoords", "ycoords")}
    for key, header in headers.items():
        if len(header.shape) != 1 or header.dtype.kind not in "iuf" or header.dtype.itemsize > 8:
            raise SourceError(
                f"{where}: {key!r} is {members[key].describe()}; expected one number per frame",
                code="npz.positions_shape",
            )
    n_x, n_y = (headers[key].shape[0] for key in ("xcoords", "ycoords"))
    if n_x != n_y:
        raise SourceError(f"{where}: {n_x} xcoords but {n_y} ycoords", code="npz.length_mismatch")
    return n_x


def _choose_axes(
    shape: tuple[int, int, int], n_positions: int, probe: tuple[int, ...] | None, declaration: Declaration, where: str
) -> tuple[str, str]:
    if declaration.axes is not None:
        axes = declaration.axes
        if shape[axes.index("f")] != n_positions:
            raise SourceError(
                f"{where}: with axes {axes} the stack {shape} has {shape[axes.index('f')]} frames, but there are "
                f"{n_positions} positions",
                code="npz.length_mismatch",
            )
        return axes, f"{axes} (declared)"
    fitting = [axes for axes in ("fyx", "yxf") if shape[axes.index("f")] == n_positions]
    if not fitting:
        middle = " (the middle axis does: --axes yfx)" if shape[1] == n_positions else ""
        raise SourceError(
            f"{where}: {n_positions} positions, but the stack {shape} has that many frames on neither its first nor "
            f"its last axis{middle}",
            code="npz.ambiguous_axes" if middle else "npz.length_mismatch",
            hint="--axes yfx" if middle else None,
        )
    by_probe = [axes for axes in fitting if probe is not None and _probe_fits(probe, _frame(axes, shape))]
    if len(fitting) == 1:
        agrees = ", frames as large as the probe" if by_probe else ""
        return fitting[0], f"{fitting[0]}, the only one with {n_positions} frames{agrees}"
    if len(by_probe) == 1:
        return by_probe[0], f"{by_probe[0]}, the only one whose frames are as large as the probe"
    raise SourceError(
        f"{where}: the stack {shape} with {n_positions} positions can be read as fyx (frames first) and as yxf "
        f"(frames last)",
        code="npz.ambiguous_axes",
        hint="--axes fyx or --axes yxf",
    )


def _frame(axes: str, shape: tuple[int, int, int]) -> tuple[int, int]:
    return shape[axes.index("y")], shape[axes.index("x")]


def _probe_fits(probe: tuple[int, ...], frame: tuple[int, int]) -> bool:
    return probe in (frame, (*frame, 1)) or (len(probe) == 3 and probe[1:] == frame)


def _optional_parts(members: Mapping[str, Member], n_frames: int, frame: tuple[int, int]) -> dict[str, str]:
    labels = ((n_frames, *frame), (n_frames, *frame, 1))
    wanted: tuple[tuple[Sequence[str], str, Callable[[NpyHeader], bool]], ...] = (
        (PROBE_KEYS, "probe", lambda h: h.dtype.kind == "c" and _probe_fits(h.shape, frame)),
        (OBJECT_KEYS, "object", lambda h: h.dtype.kind == "c" and len(h.shape) == 2 and 0 not in h.shape),
        (LABEL_KEYS, "label", lambda h: h.dtype.kind == "c" and h.shape in labels),
        (("bad_pixels",), "valid", lambda h: h.dtype.kind in "biu" and h.shape == frame),
    )
    parts: dict[str, str] = {}
    for keys, variable, fits in wanted:
        name = next((key for key in keys if key in members and fits(members[key].header)), None)
        if name is not None:
            parts[name] = variable
    return parts


def interpret(
    roles: Roles, members: Mapping[str, Member], facts: Facts, declaration: Declaration, *, where: str
) -> LegacyLayout:
    """What the file means.

    Raises
    ------
    SourceError
        Coordinates or quantity are not certain, or not finite.
    """
    origin = declaration.position_origin or "n/2"
    unit, unit_evidence = _position_unit(facts, declaration, where)
    quantity, quantity_evidence = _quantity(members[roles.stack], facts, declaration, where)
    warnings = [
        f"{key!r} {members[key].describe()} is no {what} that fits frames of {roles.frame_shape}; kept in legacy/"
        for what, variable, keys in _OPTIONAL
        for key in keys
        if key in members and key not in roles.kind.values() and variable not in roles.kind
    ]
    if not facts.probe_finite:
        warnings.append("the probe holds NaN or infinite values; it is kept in legacy/ only")
    warnings += _outside(roles, members, facts, unit, origin)
    if not facts.centred:
        warnings.append(
            f"{roles.stack!r}: the frames' corners are far brighter than their middle; zero frequency belongs at "
            f"[H//2, W//2] and the converter does not move it (numpy.fft.fftshift over y and x does)"
        )
    if not facts.probe_finite:
        roles = roles.without("probe")
    return LegacyLayout(
        roles=roles,
        quantity=quantity,
        scale=facts.sample.scale if facts.sample.proved else None,
        position_unit=unit,
        position_origin=origin,
        pixel_size_m=declaration.pixel_size_m,
        photons_declared=_photons(facts.metadata),
        evidence={
            "key": roles.evidence[0],
            "axes": roles.evidence[1],
            "quantity": quantity_evidence,
            "positions": unit_evidence,
            "position_origin": f"{origin} (declared)" if declaration.position_origin else UNTOLD_ORIGIN,
        },
        warnings=tuple(warnings),
    )


def _outside(roles: Roles, members: Mapping[str, Member], facts: Facts, unit: str, origin: str) -> Sequence[str]:
    """A warning where windows reach beyond the object: another origin, unit or pairing is likely."""
    if "object" not in roles.kind or unit != "pixel":
        return []
    outside = np.zeros(facts.y.shape, bool)
    shape = members[roles.kind["object"]].header.shape
    for values, side, extent in zip((facts.y, facts.x), roles.frame_shape, shape, strict=True):
        first = values + origin_offset(origin, side) - side // 2
        outside |= (first < -_MARGIN) | (first + side > extent + _MARGIN)
    if not outside.any():
        return []
    return [
        f"{np.count_nonzero(outside)} of {outside.size} frames see more than {_MARGIN:g} pixel beyond the object "
        f"{shape}; are positions and --position-origin {origin} right?"
    ]


def _position_unit(facts: Facts, declaration: Declaration, where: str) -> tuple[str, str]:
    for name, values in (("xcoords", facts.x), ("ycoords", facts.y)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise SourceError(f"{where}: {name}[{bad[0]}] is {values[bad[0]]}", code="npz.bad_value")
    extent = spread(facts.y, facts.x)
    if declaration.positions is not None:
        return declaration.positions, f"{declaration.positions} (declared); spread {extent:.6g}"
    if extent > PIXEL_SPREAD:
        return "pixel", f"pixel: a spread of {extent:.6g} exceeds {PIXEL_SPREAD:g}"
    raise SourceError(
        f"{where}: the coordinates spread over {extent:.6g} only, which may be metres or pixels",
        code="npz.ambiguous_positions",
        hint="--positions pixel, or --positions metre --pixel-size-m SIZE",
    )


def _quantity(stack: Member, facts: Facts, declaration: Declaration, where: str) -> tuple[str, str]:
    dtype, sample = stack.header.dtype, facts.sample
    if dtype.kind in "iu":
        if declaration.quantity not in (None, "counts"):
            raise SourceError(
                f"{where}: {stack.name!r} holds integers ({dtype.str}), so counts; declared {declaration.quantity}",
                code="npz.quantity_contradiction",
            )
        return "counts", f"counts: integers ({dtype.str})"
    if declaration.quantity is not None:
        return declaration.quantity, f"{declaration.quantity} (declared); {sample.describe()}"
    if declaration.contract is not None:
        return "amplitude", f"amplitude (declared: contract {declaration.contract}); {sample.describe()}"
    domain = (facts.metadata or {}).get("measurement_domain")
    if isinstance(domain, str) and domain in DOMAINS:
        return DOMAINS[domain], f"{DOMAINS[domain]}: measurement_domain is {domain!r}; {sample.describe()}"
    if sample.proved:
        return "amplitude", f"amplitude: {sample.describe()}"
    squares = (
        "; every value is the root of a perfect square, as counts held as float are" if sample.only_squares else ""
    )
    raise SourceError(
        f"{where}: {stack.name!r} is {dtype.str} and nothing says whether it holds counts, intensity or amplitude "
        f"({sample.describe()}{squares})",
        code="npz.ambiguous_quantity",
        hint="--quantity counts|intensity|amplitude, or --contract data-001 (float means amplitude)",
    )


def _photons(metadata: Mapping[str, object] | None) -> float | None:
    """Photons per frame as the file's metadata declare them; None where they do not."""
    physics = (metadata or {}).get("physics_parameters")
    for table in (physics, metadata):
        value = table.get("nphotons") if isinstance(table, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
            return float(value)
    return None
