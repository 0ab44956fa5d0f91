"""The frames of a source in the smallest form that gives back every bit, found by trying, checked block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, SourceError
from pipeline.scan import codec
from pipeline.scan.aside import beside
from pipeline.scan.chunks import read_chunk
from pipeline.scan.frames import StackSource
from pipeline.scan.npy import raw_bytes
from pipeline.scan.npz import crc32
from pipeline.scan.quantity import IDENTITY, AmplitudeFormula, CountLattice, amplitude_from_counts
from pipeline.scan.record import StoreRecord, place
from pipeline.scan.store import StoreWriter, spec_of, variable_attrs

DIMS: Final = ("frame", "detector_y", "detector_x")
_TRIAL_BYTES: Final = 4 << 20

Block = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredStack:
    """How the frames are stored and why.

    `exact` says that the stored form gives back every bit of the source; `total` is the sum of all counts, None
    where amplitude or intensity is stored; `promised` holds the CRC-32 of what each chunk has to give back.
    """

    quantity: str
    dtype: np.dtype[Any]
    formula: AmplitudeFormula | None
    evidence: str
    exact: bool
    total: int | None
    promised: tuple[int, ...]


class _DoesNotFitError(Exception):
    """A block that the form being tried cannot hold; says which and why."""


@dataclass(kw_only=True, slots=True)
class _Tally:
    """What is learnt while one form is being written."""

    exact: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One form to try: `store` turns a source block (k, y, x) into the stored block or raises `_DoesNotFitError`."""

    quantity: str
    dtype: np.dtype[Any]
    store: Callable[[Block, _Tally], Block]
    lattice: CountLattice | None = None


def store_frames(
    writer: StoreWriter,
    source: StackSource,
    *,
    quantity: str,
    scale: float | None,
    n_frames: int,
    frame_shape: tuple[int, int],
    where: str,
    progress: Callable[[int], None],
) -> StoredStack:
    """Write `diffraction`; the first form that holds every block wins.

    `quantity` is what the source means, `scale` the s of a proof that its amplitudes are sqrt(k)/s, or None.

    Raises
    ------
    SourceError
        A value is negative, not finite, no count although counts were declared, or above 2^32 - 1.
    """
    tried: list[str] = []
    for form in _forms(quantity, scale):
        spec = spec_of(
            "diffraction",
            DIMS,
            (n_frames, *frame_shape),
            form.dtype,
            chain=_chain(form, source),
            attrs=variable_attrs("diffraction", quantity=form.quantity, units=_units(form.quantity)),
        )
        tally, promised = _Tally(), list[int]()
        try:
            writer.add(spec, _stored_blocks(source, spec.layout.chunk[0], form, tally, promised, where, progress))
            formula = _formula(form)
        except _DoesNotFitError as reason:
            tried.append(f"not {form.dtype.name} {form.quantity}: {reason}")
            logging.getLogger(__name__).info("%s: %s; starting again", where, tried[-1])
            continue
        evidence = "; ".join([*tried, f"stored as {form.dtype.name} {form.quantity}"])
        return StoredStack(
            quantity=form.quantity,
            dtype=form.dtype,
            formula=formula,
            exact=tally.exact,
            evidence=evidence + (f", {formula.describe()}" if formula and form.lattice else ""),
            total=writer.counts_total,
            promised=tuple(promised),
        )
    raise SourceError(f"{where}: {tried[-1]}", code="npz.bad_value", hint=_way_out(quantity, source.dtype))


def _way_out(quantity: str, dtype: np.dtype[Any]) -> str | None:
    if quantity == "counts" and dtype.kind == "f":
        return "--quantity intensity keeps values that are no integers"
    return None


def _forms(quantity: str, scale: float | None) -> Iterator[_Form]:
    if quantity == "counts":
        for dtype in (np.uint16, np.uint32):
            yield _Form(quantity="counts", dtype=np.dtype(dtype), store=_as_counts(np.dtype(dtype)))
        return
    if quantity == "amplitude" and scale is not None:
        for dtype in (np.uint16, np.uint32):
            lattice = CountLattice(scale)
            yield _Form(
                quantity="counts", dtype=np.dtype(dtype), lattice=lattice, store=_as_lattice(np.dtype(dtype), lattice)
            )
    yield _Form(quantity=quantity, dtype=np.dtype(np.float32), store=_as_float32)


def refuse_no_counts(sample: Block, quantity: str, where: str) -> None:
    """Refuse a sample (k, y, x) that is said to be counts and is none, or none that 32 bits hold.

    Raises
    ------
    SourceError
        Names the value; the hint, where there is one, the option that keeps it.
    """
    if quantity != "counts":
        return
    try:
        _as_counts(np.dtype(np.uint32))(sample, _Tally())
    except _DoesNotFitError as reason:
        hint = _way_out(quantity, sample.dtype)
        raise SourceError(f"{where}: {reason}", code="npz.bad_value", hint=hint) from None


def amplitude_blocks(source: StackSource, quantity: str, where: str, *, rows: int) -> Iterator[NDArray[np.float32]]:
    """Checked blocks of `rows` frames as float32 amplitude, whatever the source holds: (k, y, x).

    Raises
    ------
    SourceError
        See `check_values` and `refuse_no_counts`.
    """
    first = 0
    for block in source.blocks(rows):
        check_values(block, first, where)
        refuse_no_counts(block, quantity, where)
        if quantity == "counts":
            yield amplitude_from_counts(block.astype(np.uint32), IDENTITY)
        else:
            yield as_float32(block) if quantity == "amplitude" else np.sqrt(as_float32(block))
        first += len(block)


def _units(quantity: str) -> str:
    return "photon" if quantity == "counts" else "1"


def _chain(form: _Form, source: StackSource) -> codec.Chain | None:
    if form.dtype.kind != "f":
        return None
    return codec.smaller_chain(as_float32(source.head(_TRIAL_BYTES)))


def _stored_blocks(
    source: StackSource,
    rows: int,
    form: _Form,
    tally: _Tally,
    promised: list[int],
    where: str,
    progress: Callable[[int], None],
) -> Iterator[Block]:
    first = 0
    for block in source.blocks(rows):
        check_values(block, first, where)
        stored = form.store(block, tally)
        promised.append(_crc(as_float32(block) if block.dtype == np.float64 else block))
        yield stored
        first += len(block)
        progress(len(block))


def _formula(form: _Form) -> AmplitudeFormula | None:
    if form.lattice is None:
        return IDENTITY if form.quantity == "counts" else None
    formula = form.lattice.formula()
    if formula is None:
        raise _DoesNotFitError("no formula gives back every bit")
    return formula


def _as_counts(dtype: np.dtype[Any]) -> Callable[[Block, _Tally], Block]:
    largest = np.iinfo(dtype).max

    def store(block: Block, tally: _Tally) -> Block:
        if block.max() > largest:
            raise _DoesNotFitError(f"a value of {block.max()} exceeds {largest}")
        counts: Block = block.astype(dtype, copy=False)
        if block.dtype.kind == "f" and not _same_bits(counts.astype(block.dtype), block):
            at = np.unravel_index(np.argmax(counts != block), block.shape)
            raise _DoesNotFitError(f"{block[at]} is no whole count")
        return counts

    return store


def _as_lattice(dtype: np.dtype[Any], lattice: CountLattice) -> Callable[[Block, _Tally], Block]:
    def store(block: Block, tally: _Tally) -> Block:
        amplitude = as_float32(block)
        counts = lattice.counts_of(amplitude)
        if counts is None:
            raise _DoesNotFitError("a value is not sqrt(k)/s for any count k below 2^22")
        if counts.dtype != dtype and counts.max() > np.iinfo(dtype).max:
            raise _DoesNotFitError(f"a count of {counts.max()} exceeds {np.iinfo(dtype).max}")
        tally.exact &= block.dtype.itemsize <= 4 or _same_bits(amplitude.astype(block.dtype), block)
        return counts.astype(dtype, copy=False)

    return store


def _as_float32(block: Block, tally: _Tally) -> Block:
    values = as_float32(block)
    tally.exact &= block.dtype.itemsize <= 4 or _same_bits(values.astype(block.dtype), block)
    return values


def as_float32(block: Block) -> NDArray[np.float32]:
    """A float block as float32; `check_values` has refused what has no finite float32."""
    return block.astype(np.float32, copy=False)


def _same_bits(one: Block, two: Block) -> bool:
    unsigned = f"u{one.dtype.itemsize}"
    return np.array_equal(one.view(unsigned), two.view(unsigned))


def check_values(block: Block, first_frame: int, where: str) -> None:
    """Refuse NaN, infinite and negative values and those beyond float32; (k, y, x).

    Raises
    ------
    SourceError
        Names the first such frame and pixel.
    """
    largest = np.finfo(np.float32).max
    if block.dtype.kind == "u" or (block.min() >= 0 and block.max() <= largest):
        return
    frame, y, x = (int(i[0]) for i in np.nonzero(~((block >= 0) & (block <= largest))))
    raise SourceError(
        f"{where}: frame {first_frame + frame}, pixel [{y}, {x}] is {block[frame, y, x]}; counts, intensity and "
        f"amplitude are not negative and not larger than float32 holds",
        code="npz.bad_value",
    )


def _crc(block: Block) -> int:
    return crc32(raw_bytes(block))


def source_block(stored: Block, dtype: np.dtype[Any], formula: AmplitudeFormula | None, *, amplitude: bool) -> Block:
    """A stored block as the source held it, in `dtype`: counts as they are, or amplitude by `formula`."""
    if stored.dtype.kind == "u" and amplitude:
        assert formula is not None
        stored = amplitude_from_counts(stored, formula)
    return stored.astype(dtype, copy=False)


def check_frames(record: StoreRecord, stack: StoredStack, dtype: np.dtype[Any], *, amplitude: bool) -> None:
    """Read every chunk of `diffraction` back and compare it with what was read from the source.

    Raises
    ------
    IntegrityError
        A chunk does not give back its frames.
    """
    array = record.arrays["diffraction"]
    dtype = np.dtype(np.float32) if dtype == np.float64 else dtype

    def read_back(index: int) -> int:
        stored = read_chunk(record, "diffraction", index)
        return _crc(source_block(stored, dtype, stack.formula, amplitude=amplitude))

    for index, found in enumerate(beside(read_back, range(array.layout.n_chunks))):
        if found != stack.promised[index]:
            raise IntegrityError(
                f"{record.path}: {place(array, index)}: read back, it differs from the source", code="store.read_back"
            )
