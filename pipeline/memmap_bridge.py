"""`MemmapDatasetBridge`: grouped data for callers of the legacy system, from an NPZ or from its store.

The bridge is itself the declaration DATA-001: a float stack means amplitude. Integers are counts, and it hands out
their square roots and says so. Nothing is cached on disk: a stored float32 stack is mapped where it lies in the
file, anything else spills to an unnamed temporary file of n x H x W x 4 bytes that goes with the bridge.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, EnvironmentFault, PlanError
from pipeline.sampling.grouping import group_frames
from pipeline.scan.chunks import chunk_ref, read_all, read_amplitude_ref
from pipeline.scan.declaration import Declaration
from pipeline.scan.frames import StackSource, disk_axes
from pipeline.scan.geometry import to_pixels
from pipeline.scan.ingest import IngestPlan, canonical_coordinate, canonical_values, data_001, open_frames, plan_ingest
from pipeline.scan.locate import locate
from pipeline.scan.npy import raw_bytes
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.store import formula_of
from pipeline.scan.storing import amplitude_blocks
from pipeline.simulate.forward import extract_patches

Floats = NDArray[np.float32]

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeConfig:
    """What a caller of the legacy system configures: frame side N, gridsize, groups, neighbour pool K.

    `declaration` settles what a file leaves open (axes, position origin, ...); DATA-001 is declared by the bridge.
    """

    N: int
    gridsize: int = 1
    n_groups: int = 512
    neighbor_count: int = 7
    allow_oversampling: bool = False
    declaration: Declaration = field(default_factory=Declaration)

    def __post_init__(self) -> None:
        if self.gridsize > 1 and self.neighbor_count < self.gridsize**2:
            raise PlanError(
                f"OVERSAMPLING-001: gridsize {self.gridsize} needs at least {self.gridsize**2} neighbours, "
                f"neighbor_count is {self.neighbor_count}",
                code="plan.oversampling_001",
            )


class MemmapDatasetBridge:
    """A scan as the legacy system wants it.

    Attributes
    ----------
    diffraction : (n, H, W) float32, amplitude, on disk
    xcoords, ycoords : (n,) float64, pixels of the object grid (canonical positions)
    xcoords_start, ycoords_start : the same for the source's start coordinates, or None
    probe : (mode, H, W) complex64, or None
    object_guess : (y, x) complex64, or None
    label : (n, H, W) complex64, or None
    frame_index : (n,) int64
    notes : what was done to the source's numbers, one sentence each
    """

    def __init__(self, npz_path: Path | str, config: BridgeConfig) -> None:
        """Open `npz_path`, a legacy NPZ or a canonical store, by path or by its name in a catalog.

        Raises
        ------
        NotFoundError, SourceError, IntegrityError
            There is nothing, or it cannot be read with certainty.
        ConfigError
            Frames are not N x N.
        """
        there = locate(npz_path)
        path = there.path
        self.config = config
        self.notes: list[str] = []
        arrays = self._from_store(path) if there.kind == "store" else self._from_npz(path)
        self.diffraction: Floats = arrays["diffraction"]
        self.xcoords: NDArray[np.float64] = arrays["position_x"]
        self.ycoords: NDArray[np.float64] = arrays["position_y"]
        self.probe: NDArray[np.complex64] | None = arrays.get("probe")
        self.object_guess: NDArray[np.complex64] | None = arrays.get("object")
        self.label: NDArray[np.complex64] | None = arrays.get("label")
        self.xcoords_start: NDArray[np.float64] | None = arrays.get("start_x")
        self.ycoords_start: NDArray[np.float64] | None = arrays.get("start_y")
        self.frame_index: NDArray[np.int64] = arrays["frame_index"]
        for note in self.notes:
            _LOG.warning("%s: %s", path, note)
        if self.diffraction.shape[1:] != (config.N, config.N):
            raise ConfigError(
                f"{path}: frames are {self.diffraction.shape[1:]}, the config says N = {config.N}",
                code="config.frame_size",
                hint=f"N={self.diffraction.shape[1]}",
            )

    def get_grouped_data(
        self,
        N: int | None = None,
        K: int | None = None,
        nsamples: int | None = None,
        gridsize: int | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Groups of gridsize^2 = C neighbouring frames; what is not given comes from the config.

        Returns
        -------
        dict
            diffraction (B, N, N, C) float32 · X_full, the same with a mean energy of (N/2)^2 a frame ·
            coords_nn (B, 1, 2, C) float64 [x, y] · coords_offsets (B, 1, 2, 1), their mean ·
            coords_relative (B, 1, 2, C) = -(coords_nn - coords_offsets), which sums to zero over C ·
            coords_start_nn, _offsets, _relative, None without start coordinates ·
            nn_indices (B, C) int64, member 0 the seed · objectGuess ·
            Y (B, N, N, C) complex64: the file's labels, else patches of its object, else None.

        Raises
        ------
        PlanError
            OVERSAMPLING-001, or too few frames.
        """
        if N is not None and N != self.config.N:
            raise ConfigError(f"N = {N}, the bridge was opened with N = {self.config.N}", code="config.frame_size")
        config = self.config
        grouping = group_frames(
            np.stack([self.ycoords, self.xcoords], axis=1),
            seed=seed,
            gridsize=config.gridsize if gridsize is None else gridsize,
            n_groups=config.n_groups if nsamples is None else nsamples,
            neighbors=config.neighbor_count if K is None else K,
            allow_oversampling=config.allow_oversampling,
        )
        for note in grouping.notes:
            _LOG.warning("%s", note)
        members = grouping.members
        frames = np.ascontiguousarray(np.moveaxis(self.diffraction[members], 1, 3))
        return {
            "diffraction": frames,
            "X_full": _normalised(frames, config.N),
            **_grouped_coordinates("coords", self.xcoords, self.ycoords, members),
            **_grouped_coordinates("coords_start", self.xcoords_start, self.ycoords_start, members),
            "nn_indices": members,
            "Y": self._patches(members),
            "objectGuess": self.object_guess,
        }

    def _patches(self, members: NDArray[np.int64]) -> NDArray[np.complex64] | None:
        """Object patches of each group, (B, N, N, C): the labels, else cut from the object; None without both."""
        if self.label is not None:
            return np.ascontiguousarray(np.moveaxis(self.label[members], 1, 3))
        if self.object_guess is None:
            return None
        positions = np.stack([self.ycoords, self.xcoords], axis=1)
        side = self.config.N
        patches = [extract_patches(self.object_guess, positions[column], side) for column in members.T]
        return np.stack(patches, axis=3)

    def _from_npz(self, path: Path) -> dict[str, NDArray[Any]]:
        said, notes = data_001(path, self.config.declaration)
        self.notes += notes
        plan = plan_ingest(path, said)
        values = canonical_values(plan)
        shape = (plan.layout.roles.n_frames, *plan.layout.roles.frame_shape)
        for axis in ("y", "x"):
            if f"{axis}coords_start" in plan.npz.members:
                values[f"start_{axis}"] = canonical_coordinate(plan, f"{axis}coords_start", f"position_{axis}")
        with open_frames(plan, beside=Path(tempfile.gettempdir()) / path.name) as source:
            rows = max(1, _BLOCK_BYTES // source.frame_bytes)
            blocks = amplitude_blocks(source, plan.layout.quantity, f"{path}: {source.member.name!r}", rows=rows)
            if _mappable(source, plan):
                for _ in blocks:  # read once for CRC-32 and values: a mapping checks nothing
                    pass
                offset = source.member.offset + len(source.member.header.prefix)
                values["diffraction"] = np.memmap(path, np.float32, "r", offset=offset, shape=shape)
                return values
            if plan.layout.quantity != "amplitude":
                self.notes.append(f"{source.member.name!r} holds {plan.layout.quantity}; handing out square roots")
            values["diffraction"] = _spilled(shape, blocks)
        return values

    def _from_store(self, path: Path) -> dict[str, NDArray[Any]]:
        record = open_record(path.absolute())
        array = record.arrays["diffraction"]
        quantity, formula = array.attrs["quantity"], formula_of(record)
        if quantity != "amplitude" and record.attrs["photons_scale"] == 1.0:
            self.notes.append(f"the store holds {quantity}; handing out square roots")
        values = {name: read_all(record, name) for name in record.variables if name != "diffraction"}
        values |= _starts_of(record)
        refs = (chunk_ref(record, "diffraction", i) for i in range(array.layout.n_chunks))
        frames = (read_amplitude_ref(ref, quantity=quantity, formula=formula) for ref in refs)
        values["diffraction"] = _spilled(array.layout.shape, frames)
        return values


def _starts_of(record: StoreRecord) -> dict[str, NDArray[Any]]:
    """The start coordinates that the store keeps verbatim, as canonical positions."""
    starts = {}
    metres = record.attrs["provenance"].get("dialect", {}).get("position_unit") == "metre"
    for axis, side in zip("yx", record.arrays["diffraction"].layout.shape[1:], strict=True):
        if f"legacy/{axis}coords_start" in record.arrays:
            starts[f"start_{axis}"] = to_pixels(
                read_all(record, f"legacy/{axis}coords_start"),
                record.attrs["position_origin"],
                side,
                record.attrs["pixel_size_m"] if metres else None,
            )
    return starts


def _grouped_coordinates(
    name: str, x: NDArray[np.float64] | None, y: NDArray[np.float64] | None, members: NDArray[np.int64]
) -> dict[str, NDArray[np.float64] | None]:
    """Coordinates of a group's members, their mean, and the members relative to it, in the legacy sign."""
    if x is None or y is None:
        return {f"{name}_nn": None, f"{name}_offsets": None, f"{name}_relative": None}
    nn = np.stack([x[members], y[members]], axis=1)[:, np.newaxis]
    offsets = nn.mean(axis=3, keepdims=True)
    return {f"{name}_nn": nn, f"{name}_offsets": offsets, f"{name}_relative": -(nn - offsets)}


def _mappable(source: StackSource, plan: IngestPlan) -> bool:
    """A stored little-endian float32 amplitude stack whose bytes are the frames one after the other."""
    return (
        not source.member.deflated
        and source.member.header.dtype == np.dtype("<f4")
        and plan.layout.quantity == "amplitude"
        and disk_axes(source.member.header, plan.layout.roles.axes) == "fyx"
    )


def _spilled(shape: tuple[int, ...], blocks: Iterator[Floats]) -> Floats:
    """The blocks one after the other in an unnamed temporary file, mapped."""
    needed, free = int(np.prod(shape)) * 4, shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise EnvironmentFault(
            f"{tempfile.gettempdir()}: {needed} bytes are needed for the frames, {free} are free",
            code="environment.no_space",
            hint="point TMPDIR at a larger disk",
        )
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(raw_bytes(block))
        file.flush()
        return np.memmap(file, np.float32, "r", shape=shape)


def _normalised(frames: Floats, side: int) -> Floats:
    """Amplitudes scaled by one number so that a frame's energy is (N/2)^2 on average; sums in float64."""
    energy = np.einsum("bhwc,bhwc->bc", frames, frames, dtype=np.float64).mean()
    if energy == 0:
        return np.zeros_like(frames)
    return np.float32(np.sqrt((side / 2) ** 2 / energy)) * frames
