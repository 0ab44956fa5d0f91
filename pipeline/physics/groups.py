"""Overlapping patches as one object: laid on a canvas by their light, and read from it again where each frame stood.

A batch holds clusters, a cluster holds groups, a group holds members, each a frame with its patch. Every group has a
canvas of its own in the grid of its cluster, so that any choice of groups can be put together for a member to read:
its own group, or all those that have not seen its frame. Positions are absolute, (y, x); a member's patch lies at its
own position, so the order of members does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.errors import PlanError
from pipeline.physics.forward import CanvasGeometry, Windows, between, spread, windows_at
from pipeline.physics.patches import PatchOptics

LEVEL_WEIGHT: Final = 1e-4
"""Weight of the flat object in a stitched one, in units of max |P|^2: what is left where no light fell."""

_MOST_PIXELS: Final = 1 << 24
"""Of all canvases of a batch together, one for each member: 128 MiB in complex64, a few times over in a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """Where the F = B C members of a batch lie on the canvases of their groups.

    windows : of each member, pixels into a canvas of `n_pixels` flattened ones.
    group : (F,) int64, its canvas. cluster : (B,) int64, of each group.
    light : (B, n_pixels) real, what fell on each canvas: scattered sum |P|^2 / max |P|^2.
    """

    windows: Windows
    group: Tensor
    cluster: Tensor
    n_pixels: int
    light: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Which groups each member reads its patch from.

    shares : (R, B) real 0 or 1, the groups that are put together, in R ways; None where each group stands alone.
    pixels : (F, S+1, S+1) int64 into R canvases flattened.
    light : (F, S+1, S+1) real, on these pixels.
    """

    shares: Tensor | None
    pixels: Tensor
    light: Tensor


class _Spread(torch.autograd.Function):
    """`spread`, with `between` as its gradient."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, windows: Windows) -> Tensor:
        """To whole pixels."""
        ctx.windows = windows
        return spread(patches, windows)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        """By the patches."""
        return between(outer[0].contiguous(), ctx.windows), None


class _Between(torch.autograd.Function):
    """`between`, with `spread` as its gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, windows: Windows) -> Tensor:
        """To where the frame stood."""
        ctx.windows = windows
        return between(pixels, windows)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        """By the pixels."""
        return spread(outer[0], ctx.windows), None


def refuse_apart(positions: Tensor, *, support: int, cluster_size: int) -> None:
    """Refuse a batch of groups whose clusters are so wide that their canvases would fill the memory.

    Parameters
    ----------
    positions : (B, C, 2) float64 (y, x), object pixels.
    support : S. cluster_size : groups per cluster, consecutive; divides B.

    Raises
    ------
    PlanError
    """
    b, c, _ = positions.shape
    tall, wide = (int(extent) for extent in _local(positions, cluster_size).amax((0, 1)))
    if b * c * _canvas_pixels(tall, wide, support) > _MOST_PIXELS:
        raise PlanError(
            f"frames of a cluster lie {tall} x {wide} px apart, (y, x); {b * c} canvases of "
            f"{tall + support} x {wide + support} px would fill the memory",
            code="groups.apart",
            hint="a smaller --batch-size or --cluster-size, or --layout spatial when the scan is converted",
        )


def parts_that_fit(positions: Tensor, *, support: int) -> list[slice]:
    """Runs of groups, each of which stands alone, whose canvases can be held at once; one group at least.

    Parameters
    ----------
    positions : (B, C, 2) float64 (y, x), object pixels. support : S.
    """
    members = positions.shape[1]
    extents = (positions.amax(1) - positions.amin(1).floor()).long().tolist()
    parts, start, largest = list[slice](), 0, 0
    for index, (tall, wide) in enumerate(extents):
        with_this = max(largest, _canvas_pixels(tall, wide, support))
        if index > start and (index + 1 - start) * members * with_this > _MOST_PIXELS:
            parts.append(slice(start, index))
            start, with_this = index, _canvas_pixels(tall, wide, support)
        largest = with_this
    return [*parts, slice(start, len(extents))]


def _local(positions: Tensor, cluster_size: int) -> Tensor:
    """Positions from the corner of their cluster on. (B, C, 2) -> (cluster, member, 2)."""
    b, c, _ = positions.shape
    assert b % cluster_size == 0, "the plan cuts whole clusters"
    in_cluster = positions.reshape(b // cluster_size, cluster_size * c, 2)
    return in_cluster - in_cluster.amin(1, keepdim=True).floor()


def _canvas_pixels(tall: int, wide: int, support: int) -> int:
    """Of a canvas that holds patches whose positions lie so far apart, with its border."""
    return (tall + support + 3) * (wide + support + 3)


def plots_of(positions: Tensor, optics: PatchOptics, *, cluster_size: int) -> Plots:
    """Where the members of groups lie on the canvases of their groups.

    Parameters
    ----------
    positions : (B, C, 2) float64 (y, x), object pixels, as `Batch.positions`.
    cluster_size : groups per cluster, consecutive; divides B.

    Raises
    ------
    PlanError
        See `refuse_apart`.
    """
    b, c, _ = positions.shape
    support, dtype = optics.support, optics.light.dtype
    refuse_apart(positions, support=support, cluster_size=cluster_size)
    cluster, local = torch.arange(b) // cluster_size, _local(positions, cluster_size)
    height, width = ((int(extent) + support + 1) for extent in local.amax((0, 1)))
    n_pixels = (height + 2) * (width + 2)
    geometry = CanvasGeometry(origin=(-(support // 2),) * 2, shape=(height, width))
    windows = windows_at(local.reshape(b * c, 2), geometry=geometry, support=support, dtype=dtype)
    group = torch.arange(b).repeat_interleave(c)
    light = spread(optics.light.expand(b * c, -1, -1), windows)
    return Plots(
        windows=windows,
        group=group,
        cluster=cluster,
        n_pixels=n_pixels,
        light=_laid(light, windows, group, n_groups=b, n_pixels=n_pixels),
    )


def _laid(values: Tensor, windows: Windows, group: Tensor, *, n_groups: int, n_pixels: int) -> Tensor:
    pixels = windows.pixels + (group * n_pixels)[:, None, None]
    onto = values.new_zeros(n_groups * n_pixels)
    return onto.index_add(0, pixels.reshape(-1), values.reshape(-1)).view(n_groups, n_pixels)


def own_group(plots: Plots) -> View:
    """Each member reads what its own group has laid down."""
    pixels = plots.windows.pixels + (plots.group * plots.n_pixels)[:, None, None]
    return View(shares=None, pixels=pixels, light=plots.light.view(-1)[pixels])


def whole_cluster(plots: Plots) -> View:
    """Each member reads what all groups of its cluster have laid down."""
    clusters = torch.arange(int(plots.cluster[-1]) + 1)
    shares = (clusters[:, None] == plots.cluster).to(plots.light.dtype)
    return _view(plots, shares, rows=plots.cluster[plots.group])


def other_groups(plots: Plots, indices: Tensor) -> View:
    """Each member reads what those groups of its cluster have laid down that hold nothing of its frame.

    Parameters
    ----------
    indices : (B, C) int64, the frame of each member, as `Batch.indices`.

    Raises
    ------
    PlanError
        There is no such group for any member, so that nothing could be learned.
    """
    frames = indices.reshape(-1)
    holds = (frames[:, None, None] == indices).any(-1)
    others = (plots.cluster[plots.group][:, None] == plots.cluster) & ~holds
    if not bool(others.any()):
        raise PlanError(
            f"{len(frames)} frames of a batch, and none has a neighbour in it that has not seen it, to be judged by",
            code="groups.alone",
            hint="a larger --cluster-size, or a larger --batch-size where that is not given",
        )
    return _view(plots, others.to(plots.light.dtype), rows=torch.arange(len(frames)))


def _view(plots: Plots, shares: Tensor, *, rows: Tensor) -> View:
    pixels = plots.windows.pixels + (rows * plots.n_pixels)[:, None, None]
    return View(shares=shares, pixels=pixels, light=(shares @ plots.light).view(-1)[pixels])


def restitched(patches: Tensor, level: Tensor, plots: Plots, view: View, optics: PatchOptics) -> Tensor:
    """What each member sees of the object that patches make together, differentiable. (F, S, S) complex, kept.

    The object is (num + 1e-4 level) / (den + 1e-4), num and den the scattered patches |P|^2 and |P|^2 in units of
    max |P|^2, read by bilinear interpolation.

    Parameters
    ----------
    patches : (F, S, S) complex, of all members in order.
    level : (F,) real, the object where no light fell, for each that reads.
    """
    # torch leaves the types of apply out
    weighted = _Spread.apply(patches * optics.light, plots.windows)  # type: ignore[no-untyped-call]
    laid = _laid(weighted, plots.windows, plots.group, n_groups=len(plots.cluster), n_pixels=plots.n_pixels)
    if view.shares is not None:
        laid = torch.view_as_complex((view.shares @ torch.view_as_real(laid).flatten(1)).view(-1, plots.n_pixels, 2))
    num = laid.reshape(-1).index_select(0, view.pixels.reshape(-1)).view(view.pixels.shape)
    found = (num + LEVEL_WEIGHT * level[:, None, None]) / (view.light + LEVEL_WEIGHT)
    seen: Tensor = _Between.apply(found, plots.windows)  # type: ignore[no-untyped-call]
    return seen
