"""Patches as one object, batch after batch: only the canvas is kept, however many patches there are.

`reassemble_aligned` is the exception: it turns the phases of all patches to each other first, and keeps them for that,
weighted and laid on whole pixels, which is all that comparing them and putting them together takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from torch import Tensor

from pipeline.physics.forward import CanvasGeometry, pad_canvas, scatter, spread, windows_at
from pipeline.physics.groups import LEVEL_WEIGHT
from pipeline.stream.scan_stream import Batch

_NEIGHBOURS_WITHIN: Final = 9 / 16
"""Patches are compared with each other up to so many of their sides apart, and up to 18 px in any case."""

_LEAST_WITHIN_PX: Final = 18.0
_PIXELS_AT_ONCE: Final = 1 << 18
_ORIGIN_FREE: Final = CanvasGeometry(origin=(0, 0), shape=(1, 1))


class Placed(NamedTuple):
    """Some patches and where they lie: (F, S, S) complex64, (F, 2) float64 (y, x) object pixels."""

    patches: Tensor
    positions: Tensor


def placed(batches: Iterable[Batch], patches_of: Callable[[Batch], Tensor]) -> Iterator[Placed]:
    """What a network makes of each batch, where it lies. `patches_of` gives (B, C, S, S) complex64."""
    for batch in batches:
        yield Placed(patches_of(batch).flatten(0, 1), batch.positions.flatten(0, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reassembled:
    """An object made of patches.

    object : (y, x) complex64 on the canvas, in the gauge of the patches; `level` where no light fell.
    coverage : (y, x) float32, what fell on each pixel: scattered sum |P|^2 / max |P|^2.
    turned_rad : root mean square of the phases that patches were turned by, about their mean; None where none was, for
        it was not asked for or no two lie near each other.
    """

    object: Tensor
    coverage: Tensor
    turned_rad: float | None = None


def reassemble(pieces: Iterable[Placed], light: Tensor, *, geometry: CanvasGeometry, level: float) -> Reassembled:
    """The mean of all patches that lie on a pixel, weighted by the probe's light.

    Parameters
    ----------
    light : (S, S) float32, sum over modes of |P|^2 / max |P|^2.
    level : the object where no light fell.
    """
    num = pad_canvas(torch.zeros(geometry.shape, dtype=torch.complex64), outside=0)
    den = pad_canvas(torch.zeros(geometry.shape), outside=0)
    for patches, positions in pieces:
        windows = windows_at(positions, geometry=geometry, support=len(light), dtype=light.dtype)
        scatter(patches * light, windows, onto=num)
        scatter(light.expand(len(patches), -1, -1), windows, onto=den)
    return _divided(num, den, level=level)


class Laid(NamedTuple):
    """Patches times the probe's light, shared among the whole pixels around where they lie.

    values : (F, S+1, S+1) complex64. corner : (F, 2) int64, their first row and column on the scan's grid.
    positions : (F, 2) float64 (y, x) object pixels.
    """

    values: Tensor
    corner: Tensor
    positions: Tensor


def laid(pieces: Iterable[Placed], light: Tensor, *, n_patches: int) -> Laid:
    """The patches of all pieces, so many in all. `light` as for `reassemble`."""
    side = len(light) + 1
    values = torch.empty((n_patches, side, side), dtype=torch.complex64)
    positions = torch.empty((n_patches, 2), dtype=torch.float64)
    done = 0
    for patches, where in pieces:
        here = slice(done, done := done + len(where))
        windows = windows_at(where, geometry=_ORIGIN_FREE, support=len(light), dtype=light.dtype)
        values[here], positions[here] = spread(patches * light, windows), where
    assert done == n_patches, "the groups of a stream are known beforehand"
    return Laid(values=values, corner=positions.floor().long(), positions=positions)


def reassemble_aligned(
    pieces: Iterable[Placed], light: Tensor, *, geometry: CanvasGeometry, level: float, n_patches: int, iterations: int
) -> Reassembled:
    """`reassemble`, of patches whose phases were turned to agree where they overlap; keeps them, 8 (S+1)^2 bytes each.

    For frames that do not tell their own global phase, where the phase of an object does not follow its amplitude.

    Parameters
    ----------
    n_patches : in all pieces together.
    iterations : of `agreeing_phases`.
    """
    kept = laid(pieces, light, n_patches=n_patches)
    overlaps = overlap_matrix(kept)
    phases = agreeing_phases(overlaps, iterations=iterations)
    num = pad_canvas(torch.zeros(geometry.shape, dtype=torch.complex64), outside=0)
    den = pad_canvas(torch.zeros(geometry.shape), outside=0)
    at_once = max(_PIXELS_AT_ONCE // kept.values[0].numel(), 1)
    for first in range(0, n_patches, at_once):
        here = slice(first, first + at_once)
        where, turned = kept.positions[here], kept.values[here] * phases[here, None, None]
        windows = windows_at(where, geometry=geometry, support=len(light), dtype=light.dtype)
        num.view(-1).index_add_(0, windows.pixels.reshape(-1), turned.view(-1))
        scatter(light.expand(len(where), -1, -1), windows, onto=den)
    around = (phases * phases.mean().conj()).angle()
    return _divided(num, den, level=level, turned_rad=_rms(around) if overlaps.nnz > len(phases) else None)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _divided(num: Tensor, den: Tensor, *, level: float, turned_rad: float | None = None) -> Reassembled:
    """The object that has gathered on padded canvases."""
    coverage = den[1:-1, 1:-1].clone()
    found = (num[1:-1, 1:-1] + LEVEL_WEIGHT * level) / (coverage + LEVEL_WEIGHT)
    return Reassembled(object=found, coverage=coverage, turned_rad=turned_rad)


def agreeing_phases(overlaps: csr_array, *, iterations: int) -> Tensor:
    """One unit factor per patch, with which patches agree best where they overlap. (F,) complex64.

    Power iterations z <- M z / |M z| from all phases 0. The mean phase of all patches is kept.

    Parameters
    ----------
    overlaps : M, see `overlap_matrix`.
    """
    z: NDArray[np.complex128] = np.ones(overlaps.shape[0], np.complex128)
    for _ in range(iterations):
        z = np.asarray(overlaps @ z)
        length = np.abs(z)
        z = np.where(length > 0, z / np.where(length > 0, length, 1), 1)
    mean = np.vdot(np.ones_like(z), z)
    if abs(mean) > 0:
        z = z * (mean.conjugate() / abs(mean))
    return torch.from_numpy(z.astype(np.complex64))


def overlap_matrix(patches: Laid) -> csr_array:
    """M[i, j] = <o_i |P|^2, o_j |P|^2> over pixels that both see, for neighbours. (F, F) complex128, Hermitian."""
    values, side = patches.values, patches.values.shape[-1]
    n, each = len(values), np.arange(len(values))
    first, second = _pairs(patches.positions.numpy(), within=max(_NEIGHBOURS_WITHIN * (side - 1), _LEAST_WITHIN_PX))
    at_once = max(_PIXELS_AT_ONCE // side**2, 1)
    products, own = np.empty(len(first), np.complex128), np.empty(n, np.complex128)
    for at in range(0, len(first), at_once):
        here = slice(at, at + at_once)
        products[here] = _inner_products(patches, first[here], second[here])
    for at in range(0, n, at_once):
        here = slice(at, at + at_once)
        own[here] = values[here].abs().double().square().sum((1, 2)).numpy()
    rows, columns = np.concatenate([first, second, each]), np.concatenate([second, first, each])
    return csr_array((np.concatenate([products, products.conj(), own]), (rows, columns)), shape=(n, n))


def _pairs(positions: NDArray[np.float64], *, within: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = cKDTree(positions).query_pairs(within, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def _inner_products(patches: Laid, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.complex128]:
    """Sums of conj(first) second over the pixels of the scan's grid that both patches cover. (pair,)."""
    values, corner, side = patches.values, patches.corner, patches.values.shape[-1]
    one, other = torch.from_numpy(first), torch.from_numpy(second)
    line = torch.arange(side)
    there = line[None, None, :] + (corner[one] - corner[other])[:, :, None]
    within = (there >= 0) & (there < side)
    there = there.clamp(0, side - 1)
    pixels = (other[:, None, None] * side + there[:, 0, :, None]) * side + there[:, 1, None, :]
    both = within[:, 0, :, None] & within[:, 1, None, :]
    seen = values.reshape(-1)[pixels] * both
    sums: NDArray[np.complex128] = (values[one].conj() * seen).sum((1, 2), dtype=torch.complex128).numpy()
    return sums
