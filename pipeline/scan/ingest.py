"""One legacy NPZ becomes one canonical store: planned, written, read back, published whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, SourceError
from pipeline.scan import embedded
from pipeline.scan import npz as npz_file
from pipeline.scan.declaration import Declaration, declared_for
from pipeline.scan.frames import StackSource
from pipeline.scan.geometry import origin_offset, zero_frequency_is_central
from pipeline.scan.layout import plan_chunks
from pipeline.scan.legacy import Facts, LegacyLayout, Placement, Roles, interpret, name_members
from pipeline.scan.npz import Member, MemberReader, Npz, disk_blocks
from pipeline.scan.provenance import KeptMember, root_attributes_of
from pipeline.scan.quantity import sqrt_evidence
from pipeline.scan.record import StoreRecord
from pipeline.scan.schema import SCAN_SCHEMA
from pipeline.scan.staging import refuse_target, staged_folder
from pipeline.scan.store import StoreWriter, refuse_foreign, spec_of, variable_attrs
from pipeline.scan.storing import StoredStack, as_float32, check_frames, check_values, store_frames

SAMPLE_BYTES: Final = 4 << 20
_MAX_TEXT_BYTES: Final = 16 << 20
_NUMBERS: Final = "biufc"

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestPlan:
    """What one conversion will do: the checked source, what it means, what the user said."""

    npz: Npz
    layout: LegacyLayout
    declaration: Declaration
    metadata_text: str | None
    drop_original: bool = False

    @property
    def stack(self) -> Member:
        """The member that holds the frames."""
        return self.npz.members[self.layout.roles.stack]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """A finished conversion."""

    record: StoreRecord
    plan: IngestPlan
    stack: StoredStack
    members: tuple[KeptMember, ...]


def plan_ingest(path: Path, declaration: Declaration, *, drop_original: bool = False) -> IngestPlan:
    """Read headers, coordinates, metadata and a bounded sample of frames, and decide what the file means.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError, ConfigError
        There is no file, it is damaged, or its meaning is not certain; the hint names the option that settles it.
    """
    declaration = declared_for(path, declaration)
    npz = npz_file.open_npz(path)
    roles = name_members(npz.members, declaration, where=str(path))
    text = _metadata_text(npz, roles.metadata)
    facts = Facts(
        x=_coordinate(npz, "xcoords"),
        y=_coordinate(npz, "ycoords"),
        metadata=embedded.json_of(text) if text is not None else None,
    )
    with _frames(npz, roles, roles.stack, beside=path) as source:
        sample = source.head(SAMPLE_BYTES)
    check_values(sample, 0, f"{path}: {roles.stack!r}")
    facts = replace(facts, centred=zero_frequency_is_central(sample))
    if sample.dtype.kind == "f":
        facts = replace(facts, sample=sqrt_evidence(as_float32(sample)))
    layout = interpret(roles, npz.members, facts, declaration, where=str(path))
    return IngestPlan(npz=npz, layout=layout, declaration=declaration, metadata_text=text, drop_original=drop_original)


def open_frames(plan: IngestPlan, *, beside: Path) -> StackSource:
    """The frames of a planned source; spools to the folder of `beside` where they are not contiguous."""
    return _frames(plan.npz, plan.layout.roles, plan.layout.roles.stack, beside=beside)


def canonical_values(plan: IngestPlan) -> dict[str, Array]:
    """All variables but `diffraction` and `valid` in the stored form, read whole: (positions, probe, ...)."""
    roles = plan.layout.roles
    values: dict[str, Array] = {"frame_index": np.arange(roles.n_frames, dtype=np.int64)}
    for variable, name in roles.kind.items():
        if variable not in ("diffraction", "valid"):
            array, _ = npz_file.read_array(plan.npz, plan.npz.members[name])
            values[variable] = _canonical(array, plan.layout, variable)
    return values


def _frames(npz: Npz, roles: Roles, name: str, *, beside: Path) -> StackSource:
    axes = roles.axes if name == roles.stack else "fyx"
    return StackSource(npz, npz.members[name], axes=axes, shape=(roles.n_frames, *roles.frame_shape), beside=beside)


def _coordinate(npz: Npz, key: str) -> NDArray[np.float64]:
    values, _ = npz_file.read_array(npz, npz.members[key])
    return values.astype(np.float64)


def _metadata_text(npz: Npz, name: str | None) -> str | None:
    if name is None:
        return None
    member = npz.members[name]
    if member.size > _MAX_TEXT_BYTES:
        raise SourceError(
            f"{npz.path}: member {name!r} has {member.size} bytes; no metadata text is that long",
            code="npz.object_member",
        )
    raw, _ = npz_file.read_raw(npz, member)
    text = embedded.text_of(member.header, raw)
    if member.is_object and (text is None or embedded.json_of(text) is None):
        raise SourceError(
            f"{npz.path}: member {name!r} is a pickle that holds something else than one JSON string; it was not "
            f"unpickled",
            code="npz.object_member",
            hint="save that member again as numbers or text",
        )
    return text


def ingest(
    plan: IngestPlan, target: Path, *, overwrite: bool = False, progress: Callable[[int], None] = lambda n: None
) -> Ingested:
    """Convert the planned source to a store at `target`, whole and verified or not at all.

    Raises
    ------
    ConfigError
        The target is the source, or no NAME.zarr.
    TargetExistsError
        Something is at `target` and `overwrite` is false, or it is no store of ours.
    SourceError
        A value contradicts the meaning, or the source changed while it was read.
    IntegrityError
        The source is damaged, or the store read back differs from what was read.
    """
    refuse_target(target, suffix=".zarr", source=plan.npz.path)
    if overwrite:
        refuse_foreign(target)
    roles, where = plan.layout.roles, f"{plan.npz.path}: {plan.layout.roles.stack!r}"
    with (
        staged_folder(target, overwrite=overwrite) as stage,
        open_frames(plan, beside=target) as source,
        ThreadPoolExecutor(1) as aside,
    ):
        file_sha256 = aside.submit(npz_file.sha256_file, plan.npz.path)
        writer = StoreWriter(stage)
        stack = store_frames(
            writer,
            source,
            quantity=plan.layout.quantity,
            scale=plan.layout.scale,
            n_frames=roles.n_frames,
            frame_shape=roles.frame_shape,
            where=where,
            progress=progress,
        )
        members = tuple(_store_member(writer, source, plan, stack, p, target) for p in roles.placements)
        index = np.arange(roles.n_frames, dtype=np.int64)
        _add_whole(writer, "frame_index", SCAN_SCHEMA["frame_index"].dims, index, variable_attrs("frame_index"))
        if not plan.npz.unchanged():
            raise SourceError(f"{plan.npz.path}: the file changed while it was read", code="source.changed")
        record = writer.finish(
            root_attributes_of(
                plan.layout,
                plan.declaration,
                stack,
                members,
                source=plan.npz.path,
                source_sha256=file_sha256.result(),
                source_bytes=plan.npz.state[0],
                metadata_text=plan.metadata_text,
            )
        )
        check_frames(record, stack, source.dtype, amplitude=plan.layout.quantity == "amplitude")
        writer.check(record, skip=("diffraction",))
    return Ingested(record=replace(record, path=target), plan=plan, stack=stack, members=members)


def _store_member(
    writer: StoreWriter,
    source: StackSource,
    plan: IngestPlan,
    stack: StoredStack,
    placement: Placement,
    target: Path,
) -> KeptMember:
    """Put one member where it belongs; the stack's frames are stored already."""
    member = plan.npz.members[placement.member]
    if placement.variable == "diffraction":
        assert source.digest is not None
        if stack.exact:
            return KeptMember(member=member, digest=source.digest, variable="diffraction")
        if plan.drop_original:
            reason = f"{member.header.dtype.name} does not fit float32; cast to float32 by --drop-original"
            return KeptMember(member=member, digest=source.digest, variable="diffraction", dropped=reason)
        return replace(_store_verbatim(writer, plan.npz, member), variable="diffraction")
    if placement.twin_of is not None:
        with MemberReader(plan.npz, member) as reader:
            digest = reader.finish()
        if source.digest != digest:
            raise IntegrityError(
                f"{plan.npz.path}: {member.name!r} and {placement.twin_of!r} have one CRC-32 but different bytes",
                code="npz.crc",
            )
        return KeptMember(member=member, digest=digest, twin_of=placement.twin_of)
    if placement.variable is None:
        return _store_verbatim(writer, plan.npz, member)
    if placement.variable == "label":
        return _store_labels(writer, plan, member, target)
    return _store_variable(writer, plan, member, placement.variable)


def _store_labels(writer: StoreWriter, plan: IngestPlan, member: Member, target: Path) -> KeptMember:
    """Store object patches block by block; complex128 that complex64 cannot give back is kept verbatim too."""
    roles, exact = plan.layout.roles, True
    shape = (roles.n_frames, *roles.frame_shape)
    spec = spec_of("label", SCAN_SCHEMA["label"].dims, shape, np.dtype(np.complex64), attrs=variable_attrs("label"))

    def stored(source: StackSource) -> Iterator[Array]:
        nonlocal exact
        for block in source.blocks(spec.layout.chunk[0]):
            values: Array = block.astype(np.complex64, copy=False)
            exact = exact and _gives_back(values, block)
            yield values

    with _frames(plan.npz, roles, member.name, beside=target) as source:
        writer.add(spec, stored(source))
        assert source.digest is not None
        digest = source.digest
    if exact:
        return KeptMember(member=member, digest=digest, variable="label")
    return replace(_store_verbatim(writer, plan.npz, member), variable="label")


def _store_variable(writer: StoreWriter, plan: IngestPlan, member: Member, variable: str) -> KeptMember:
    """Store a small member as a variable, and verbatim too where the variable does not give its bits back."""
    values, digest = npz_file.read_array(plan.npz, member)
    attrs = variable_attrs(variable, **({"role": "guess"} if variable == "object" else {}))
    stored = _canonical(values, plan.layout, variable)
    _add_whole(writer, variable, SCAN_SCHEMA[variable].dims, stored, attrs)
    if variable != "valid" and _gives_back(stored, values):
        return KeptMember(member=member, digest=digest, variable=variable)
    return replace(_store_verbatim(writer, plan.npz, member), variable=variable)


def _gives_back(stored: Array, values: Array) -> bool:
    """Whether the variable, cast and reshaped, has the bits of the source's values."""
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    back = np.ascontiguousarray(stored.astype(native.dtype).reshape(native.shape))
    return back.tobytes() == native.tobytes()


def _pixels(values: Array, layout: LegacyLayout, variable: str) -> NDArray[np.float64]:
    frame_side = layout.roles.frame_shape[0 if variable == "position_y" else 1]
    pixels = values.astype(np.float64)
    if layout.position_unit == "metre":
        assert layout.pixel_size_m is not None
        pixels = pixels / layout.pixel_size_m
    offset = origin_offset(layout.position_origin, frame_side)
    return pixels + offset if offset else pixels


def _canonical(values: Array, layout: LegacyLayout, variable: str) -> Array:
    """A small member as its variable: positions in pixels, probes as (mode, y, x), good pixels instead of bad ones."""
    if variable in ("position_y", "position_x"):
        return _pixels(values, layout, variable)
    if variable == "valid":
        return np.asarray(values == 0)
    if variable == "probe" and values.ndim == 2:
        values = values[np.newaxis]
    elif variable == "probe" and values.shape[1:] != layout.roles.frame_shape:
        values = values[np.newaxis, :, :, 0]
    elif variable == "label" and values.ndim == 4:
        values = values[..., 0]
    return values.astype(np.complex64)


def _store_verbatim(writer: StoreWriter, npz: Npz, member: Member) -> KeptMember:
    """Keep a member under legacy/: numbers as an array in the order of the disk, anything else as raw bytes."""
    name = writer.legacy_name(member.name)
    dtype = member.header.dtype
    numeric = dtype.kind in _NUMBERS and dtype.itemsize <= 16 and dtype != np.longdouble and dtype.names is None
    shape = member.header.disk_shape if numeric else (member.size - len(member.header.prefix),)
    stored_dtype = dtype.newbyteorder("=") if numeric else np.dtype(np.uint8)
    dims = tuple(f"{name.removeprefix('legacy/')}_{axis}" for axis in range(len(shape)))
    spec = spec_of(name, dims, shape, stored_dtype, attrs={"source_member": member.name})
    with MemberReader(npz, member) as reader:
        blocks = disk_blocks(reader, shape, dtype if numeric else stored_dtype, max(1, *spec.layout.chunk[:1], 1))
        writer.add(spec, (block.astype(stored_dtype, copy=False) for block in blocks))
        digest = reader.finish()
    return KeptMember(member=member, digest=digest, legacy=name, raw=not numeric)


def _add_whole(writer: StoreWriter, name: str, dims: tuple[str, ...], values: Array, attrs: dict[str, Any]) -> None:
    spec = spec_of(name, dims, values.shape, values.dtype, attrs=attrs)
    writer.add(spec, _row_blocks(values, plan_chunks(values.shape, values.dtype.itemsize).chunk[0]))


def _row_blocks(values: Array, rows: int) -> Iterable[Array]:
    return (values[start : start + rows] for start in range(0, values.shape[0], rows))
