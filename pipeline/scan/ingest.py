"""One legacy NPZ becomes one canonical store: planned, written, read back, published whole."""

from __future__ import annotations

import math
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
from pipeline.scan.declaration import STACK_KEYS, Declaration, declared_for
from pipeline.scan.frames import StackSource
from pipeline.scan.geometry import to_pixels, zero_frequency_is_central
from pipeline.scan.legacy import Facts, LegacyLayout, Placement, Roles, interpret, name_members
from pipeline.scan.npz import Member, MemberReader, Npz, disk_blocks
from pipeline.scan.provenance import KeptMember, root_attributes_of
from pipeline.scan.quantity import sqrt_evidence
from pipeline.scan.record import StoreRecord
from pipeline.scan.schema import SCAN_SCHEMA
from pipeline.scan.staging import refuse_target, staged_folder
from pipeline.scan.store import StoreWriter, refuse_foreign, spec_of, variable_attrs
from pipeline.scan.storing import StoredStack, as_float32, check_frames, check_values, refuse_no_counts, store_frames

SAMPLE_BYTES: Final = 4 << 20
_MAX_TEXT_BYTES: Final = 16 << 20
_MAX_ROW_BYTES: Final = 32 << 20
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
    npz = npz_file.open_npz(path)
    declaration = declared_for(path, declaration)
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
    facts = replace(facts, centred=zero_frequency_is_central(sample), probe_finite=_probe_is_finite(npz, roles))
    if sample.dtype.kind == "f":
        facts = replace(facts, sample=sqrt_evidence(as_float32(sample)))
    layout = interpret(roles, npz.members, facts, declaration, where=str(path))
    refuse_no_counts(sample, layout.quantity, f"{path}: {roles.stack!r}")
    return IngestPlan(npz=npz, layout=layout, declaration=declaration, metadata_text=text, drop_original=drop_original)


def data_001(path: Path, said: Declaration) -> tuple[Declaration, tuple[str, ...]]:
    """What the contract DATA-001 declares of a file, besides what was said: float means amplitude; and notes on it.

    Where both stacks are there `diffraction` is taken, as the readers of that contract did.
    """
    if said.quantity is None:
        said = replace(said, contract="data-001")
    if said.key is None and set(STACK_KEYS) <= set(npz_file.open_npz(path).members):
        return replace(said, key="diffraction"), ("both 'diffraction' and 'diff3d' are there; taking 'diffraction'",)
    return said, ()


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
            shape = _canonical_shape(array.shape, plan.layout, variable)
            values[variable] = _canonical(array.reshape(shape), plan.layout, variable)
    return values


def canonical_coordinate(plan: IngestPlan, member: str, variable: str) -> Array:
    """Another member's coordinates as canonical positions along the axis of `variable`: (n,) float64 pixels."""
    values, _ = npz_file.read_array(plan.npz, plan.npz.members[member])
    return _canonical(values, plan.layout, variable)


def _frames(npz: Npz, roles: Roles, name: str, *, beside: Path) -> StackSource:
    axes = roles.axes if name == roles.stack else "fyx"
    return StackSource(npz, npz.members[name], axes=axes, shape=(roles.n_frames, *roles.frame_shape), beside=beside)


def _coordinate(npz: Npz, key: str) -> NDArray[np.float64]:
    values, _ = npz_file.read_array(npz, npz.members[key])
    return values.astype(np.float64)


def _probe_is_finite(npz: Npz, roles: Roles) -> bool:
    if "probe" not in roles.kind:
        return True
    member = npz.members[roles.kind["probe"]]
    lying = member.header.disk_shape
    with MemberReader(npz, member) as reader:
        return all(np.isfinite(block).all() for block in disk_blocks(reader, lying, member.header.dtype, 1))


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
        The target is no NAME.zarr.
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
        _store_frame_index(writer, roles.n_frames)
        if not plan.npz.unchanged():
            raise SourceError(f"{plan.npz.path}: the file changed while it was read", code="source.changed")
        record = writer.finish_scan(
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
    return _store_variable(writer, plan, member, placement.variable, target)


def _store_frame_index(writer: StoreWriter, n_frames: int) -> None:
    dims, attrs = SCAN_SCHEMA["frame_index"].dims, variable_attrs("frame_index")
    spec = spec_of("frame_index", dims, (n_frames,), np.dtype(np.int64), attrs=attrs)
    rows = map(spec.layout.rows, range(spec.layout.n_chunks))
    writer.add(spec, (np.arange(start, stop, dtype=np.int64) for start, stop in rows))


def _store_variable(writer: StoreWriter, plan: IngestPlan, member: Member, variable: str, target: Path) -> KeptMember:
    """Store a member as a variable, and verbatim too where the variable does not give its bits back."""
    shape = _canonical_shape(member.header.shape, plan.layout, variable)
    dtype = np.dtype(SCAN_SCHEMA[variable].dtypes[0])
    attrs = variable_attrs(variable, **({"role": "guess"} if variable == "object" else {}))
    spec = spec_of(variable, SCAN_SCHEMA[variable].dims, shape, dtype, attrs=attrs)
    exact = variable != "valid"

    def stored(blocks: Iterable[Array]) -> Iterator[Array]:
        nonlocal exact
        for block in blocks:
            native = block.astype(block.dtype.newbyteorder("="), copy=False)
            values = _canonical(native, plan.layout, variable)
            exact = exact and values.astype(native.dtype).tobytes() == native.tobytes()
            yield values

    rows = spec.layout.chunk[0]
    if variable == "label":
        with _frames(plan.npz, plan.layout.roles, member.name, beside=target) as source:
            writer.add(spec, stored(source.blocks(rows)))
            assert source.digest is not None
            digest = source.digest
    else:
        with MemberReader(plan.npz, member) as reader:
            writer.add(spec, stored(_row_blocks(reader, member, shape, rows)))
            digest = reader.finish()
    if exact:
        return KeptMember(member=member, digest=digest, variable=variable)
    return replace(_store_verbatim(writer, plan.npz, member), variable=variable)


def _row_blocks(reader: MemberReader, member: Member, shape: tuple[int, ...], rows: int) -> Iterator[Array]:
    """The member's values in blocks of `rows` of its canonical shape; one in Fortran order is read whole first."""
    if not member.header.fortran_order:
        yield from disk_blocks(reader, shape, member.header.dtype, rows)
        return
    lying = member.header.disk_shape
    whole = next(disk_blocks(reader, lying, member.header.dtype, lying[0])).T.reshape(shape)
    yield from (whole[start : start + rows] for start in range(0, shape[0], rows))


def _canonical_shape(shape: tuple[int, ...], layout: LegacyLayout, variable: str) -> tuple[int, ...]:
    """The member's shape as its variable has it, the values in the same order: probes (mode, y, x), no trailing 1."""
    frame = layout.roles.frame_shape
    if variable == "probe":
        return shape if len(shape) == 3 and shape[1:] == frame else (1, *frame)
    return (layout.roles.n_frames, *frame) if variable == "label" else shape


def _canonical(values: Array, layout: LegacyLayout, variable: str) -> Array:
    """Values as their variable has them: positions in pixels, good pixels instead of bad ones, complex64."""
    if variable in ("position_y", "position_x"):
        side = layout.roles.frame_shape[0 if variable == "position_y" else 1]
        metre = layout.pixel_size_m if layout.position_unit == "metre" else None
        return to_pixels(values, layout.position_origin, side, metre)
    return np.asarray(values == 0) if variable == "valid" else values.astype(np.complex64)


def _store_verbatim(writer: StoreWriter, npz: Npz, member: Member) -> KeptMember:
    """Keep a member under legacy/: numbers as an array in the order of the disk, anything else as raw bytes.

    Numbers whose rows are too long to be a chunk are raw bytes too, so that memory stays bounded.
    """
    name = writer.legacy_name(member.name)
    dtype = member.header.dtype
    plain = dtype.kind in _NUMBERS and dtype.itemsize <= 16 and dtype != np.longdouble and dtype.names is None
    numeric = plain and math.prod(member.header.disk_shape[1:]) * dtype.itemsize <= _MAX_ROW_BYTES
    shape = member.header.disk_shape if numeric else (member.size - len(member.header.prefix),)
    stored_dtype = dtype.newbyteorder("=") if numeric else np.dtype(np.uint8)
    dims = tuple(f"{name.removeprefix('legacy/')}_{axis}" for axis in range(len(shape)))
    spec = spec_of(name, dims, shape, stored_dtype, attrs={"source_member": member.name})
    with MemberReader(npz, member) as reader:
        blocks = disk_blocks(reader, shape, dtype if numeric else stored_dtype, max(1, *spec.layout.chunk[:1], 1))
        writer.add(spec, (block.astype(stored_dtype, copy=False) for block in blocks))
        digest = reader.finish()
    return KeptMember(member=member, digest=digest, legacy=name, raw=not numeric)
