"""Patches as one object, batch after batch: only the canvas is kept, however many patches there are.

`reassemble_aligned` is the exception: it turns the phases of all patches to each other first, and keeps them for that.
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

NEIGHBOURS_WITHIN_PX: Final = 18.0
"""Patches further apart are not compared with each other."""

_PAIRS_AT_ONCE: Final = 1024
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
    turned_rad : root mean square of the phases that patches were turned by, about their mean; None where none was.
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
    coverage = den[1:-1, 1:-1].clone()
    return Reassembled(object=(num[1:-1, 1:-1] + LEVEL_WEIGHT * level) / (coverage + LEVEL_WEIGHT), coverage=coverage)


def reassemble_aligned(
    pieces: Iterable[Placed], light: Tensor, *, geometry: CanvasGeometry, level: float, iterations: int
) -> Reassembled:
    """`reassemble`, of patches whose phases were turned to agree where they overlap. Keeps them all, 8 S^2 bytes each.

    For frames that do not tell their own global phase, where the phase of an object does not follow its amplitude.

    Parameters
    ----------
    iterations : of `agreeing_phases`.
    """
    batches = list(pieces)
    everything = Placed(torch.cat([batch.patches for batch in batches]), torch.cat([b.positions for b in batches]))
    phases = agreeing_phases(everything, light, iterations=iterations)
    turned = Placed(everything.patches * phases[:, None, None], everything.positions)
    made = reassemble([turned], light, geometry=geometry, level=level)
    around = phases * phases.mean().conj()
    return Reassembled(
        object=made.object, coverage=made.coverage, turned_rad=float(around.angle().square().mean().sqrt())
    )


def agreeing_phases(pieces: Placed, light: Tensor, *, iterations: int) -> Tensor:
    """One unit factor per patch, with which patches agree best where they overlap. (F,) complex64.

    Power iterations z <- M z / |M z| from all phases 0, M[i, j] = <o_i |P|^2, o_j |P|^2> over pixels that both see, for
    patches up to 18 px apart. The mean phase of all patches is kept.
    """
    overlaps = overlap_matrix(pieces, light)
    z: NDArray[np.complex128] = np.ones(len(pieces.patches), np.complex128)
    for _ in range(iterations):
        z = np.asarray(overlaps @ z)
        length = np.abs(z)
        z = np.where(length > 0, z / np.where(length > 0, length, 1), 1)
    mean = np.vdot(np.ones_like(z), z)
    if abs(mean) > 0:
        z = z * (mean.conjugate() / abs(mean))
    return torch.from_numpy(z.astype(np.complex64))


def overlap_matrix(pieces: Placed, light: Tensor) -> csr_array:
    """The inner products of neighbouring patches, Hermitian. (F, F) complex128, sparse."""
    windows = windows_at(pieces.positions, geometry=_ORIGIN_FREE, support=len(light), dtype=light.dtype)
    laid = spread(pieces.patches * light, windows)
    first, second = _pairs(pieces.positions.numpy())
    corner = pieces.positions.floor().long()
    found = [
        _inner_products(laid, corner, first[at : at + _PAIRS_AT_ONCE], second[at : at + _PAIRS_AT_ONCE])
        for at in range(0, len(first), _PAIRS_AT_ONCE)
    ]
    products = np.concatenate([np.zeros(0, np.complex128), *found])
    own = laid.abs().double().square().sum((1, 2)).numpy().astype(np.complex128)
    n, each = len(laid), np.arange(len(laid))
    rows, columns = np.concatenate([first, second, each]), np.concatenate([second, first, each])
    return csr_array((np.concatenate([products, products.conj(), own]), (rows, columns)), shape=(n, n))


def _pairs(positions: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = cKDTree(positions).query_pairs(NEIGHBOURS_WITHIN_PX, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def _inner_products(
    laid: Tensor, corner: Tensor, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.complex128]:
    """Sums of conj(first) second over the pixels of the scan's grid that both patches cover. (pair,)."""
    side = laid.shape[-1]
    one, other = torch.from_numpy(first), torch.from_numpy(second)
    line = torch.arange(side)
    there = line[None, None, :] + (corner[one] - corner[other])[:, :, None]
    within = (there >= 0) & (there < side)
    there = there.clamp(0, side - 1)
    pixels = (other[:, None, None] * side + there[:, 0, :, None]) * side + there[:, 1, None, :]
    both = within[:, 0, :, None] & within[:, 1, None, :]
    seen = laid.reshape(-1)[pixels] * both
    sums: NDArray[np.complex128] = (laid[one].conj() * seen).sum((1, 2), dtype=torch.complex128).numpy()
    return sums
