"""Which frames of a dose a view keeps, and how much what it keeps overlaps. Pure.

The probe is taken for a disc of diameter D. Metric 1 looks inside groups, metric 2 at single frames, metric 3 at the
centroids of groups; each is a mean of shared fractions of disc area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from pipeline.errors import PlanError
from pipeline.sampling.grouping import nearest_others
from pipeline.seeding import Purpose, permutation

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

METRICS_VERSION: Final = "1.0"
_MOST_ACCEPTED: Final = 0.10
_LEAST_ACCEPTED: Final = 1e-6
_ROWS: Final = 128


def drawn_view(n_frames: int, *, s_img: float, seed: int) -> Indices:
    """The frames that a draw without replacement keeps, in order: round(s_img n), at least one. (k,) int64."""
    keep = max(round(s_img * n_frames), 1)
    return np.sort(permutation(seed, Purpose.VIEW, n=n_frames)[:keep])


def spaced_view(positions: Doubles, *, spacing_px: float) -> Indices:
    """The frames that lie at least `spacing_px` from every frame kept before them, gone through in order. (k,) int64.

    Parameters
    ----------
    positions : (n, 2) float64 pairs (y, x), pixels.
    """
    tree = cKDTree(positions)
    free = np.ones(len(positions), dtype=bool)
    kept = []
    for frame in range(len(positions)):
        if not free[frame]:
            continue
        kept.append(frame)
        near = np.asarray(tree.query_ball_point(positions[frame], spacing_px), dtype=np.int64)
        free[near[np.hypot(*(positions[near] - positions[frame]).T) < spacing_px]] = False
        free[frame] = False
    return np.array(kept, dtype=np.int64)


def disc_overlap(distance_px: Doubles | float, diameter_px: float) -> Doubles:
    """Which fraction of its area a disc shares with an equal one whose centre lies `distance_px` away.

    f(d) = (2 R^2 acos(d / 2R) - (d / 2) sqrt(4 R^2 - d^2)) / (pi R^2) with R = D/2, the area of the lens of two
    circles over that of one; 0 from d = D on. Same shape as `distance_px`, float64.

    >>> float(disc_overlap(0.0, 38.4)), round(float(disc_overlap(19.2, 38.4)), 6), float(disc_overlap(38.4, 38.4))
    (1.0, 0.391002, 0.0)
    """
    part = np.clip(np.asarray(distance_px, dtype=np.float64) / diameter_px, 0.0, 1.0)  # d / 2R
    return np.asarray((2 * np.arccos(part) - 2 * part * np.sqrt(1 - part * part)) / math.pi)


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapPlan:
    """What the metrics are measured with; `seed` draws the groups of gridsize 2."""

    gridsize: int
    s_img: float | None
    n_groups: int
    neighbor_count: int
    probe_diameter_px: float
    seed: int


def overlap_metrics(positions: Doubles, plan: OverlapPlan, *, n_images_total: int) -> dict[str, Any]:
    """The three overlap metrics of the frames that a view kept, with everything they were measured with.

    With gridsize 1 a group is a frame, and metric 1 is left out. With gridsize g it is a drawn frame and its nearest,
    g^2 in all. Metric 1 is the mean, over every member of every group, of its mean f with at most K of its nearest
    fellows; metric 2 the mean, over frames at different positions, of its mean f with the K nearest others; metric 3
    the mean, over groups, of the mean f of its centroid with the other centroids closer than D, 0 where there is none.

    Parameters
    ----------
    positions : (n, 2) float64 pairs (y, x) of the kept frames, pixels.
    n_images_total : how many frames there were before.

    Raises
    ------
    PlanError
        There are fewer frames than a group has members.
    """
    members = measured_groups(positions, gridsize=plan.gridsize, n_groups=plan.n_groups, seed=plan.seed)
    diameter, unique = plan.probe_diameter_px, np.unique(positions, axis=0)
    bound = acceptance_bound(positions, diameter_px=diameter)
    inside = {"metric_1_group_based_avg": _inside_groups(positions, members, plan)} if plan.gridsize > 1 else {}
    return {
        "metrics_version": METRICS_VERSION,
        "gridsize": plan.gridsize,
        "s_img": plan.s_img,
        "n_groups": plan.n_groups,
        "neighbor_count": plan.neighbor_count,
        "probe_diameter_px": diameter,
        "rng_seed_subsample": plan.seed,
        **inside,
        "metric_2_image_based_avg": _between_frames(unique, plan),
        "metric_3_group_to_group_avg": _between_groups(positions[members].mean(axis=1), diameter),
        "n_images_total": n_images_total,
        "n_images_subsampled": len(positions),
        "n_unique_images": len(unique),
        "n_groups_actual": len(members),
        "geometry_acceptance_bound": bound,
        "effective_min_acceptance": max(bound, _LEAST_ACCEPTED),
    }


def measured_groups(positions: Doubles, *, gridsize: int, n_groups: int, seed: int) -> Indices:
    """The groups that overlap is measured on: every frame, or drawn frames each with its nearest. (group, C) int64.

    Raises
    ------
    PlanError
        There are fewer frames than a group has members.
    """
    n, size = len(positions), gridsize * gridsize
    if n < size:
        raise PlanError(f"{n} frames cannot fill a group of {size} (gridsize {gridsize})", code="plan.frames")
    if size == 1:
        return np.arange(n, dtype=np.int64)[:, np.newaxis]
    seeds = permutation(seed, Purpose.GROUP_SEEDS, n=n)[:n_groups]
    return np.concatenate([seeds[:, np.newaxis], nearest_others(positions, size - 1)[seeds]], axis=1)


def acceptance_bound(positions: Doubles, *, diameter_px: float) -> float:
    """How large a share of the frames can be kept without discs that overlap: min(bounding box / discs' area, 0.1)."""
    height, width = np.ptp(positions, axis=0)
    return float(min(height * width / (len(positions) * math.pi * (diameter_px / 2) ** 2), _MOST_ACCEPTED))


def _inside_groups(positions: Doubles, members: Indices, plan: OverlapPlan) -> float:
    there = positions[members]  # (group, C, 2)
    distance = np.hypot(*np.moveaxis(there[:, :, np.newaxis] - there[:, np.newaxis], -1, 0))
    own = np.arange(members.shape[1])
    distance[:, own, own] = np.inf
    nearest = np.sort(distance, axis=2)[:, :, : min(plan.neighbor_count, members.shape[1] - 1)]
    return float(disc_overlap(nearest, plan.probe_diameter_px).mean())


def _between_frames(unique: Doubles, plan: OverlapPlan) -> float:
    neighbours = min(plan.neighbor_count, len(unique) - 1)
    if neighbours < 1:
        return 0.0
    distance, _ = cKDTree(unique).query(unique, k=neighbours + 1)  # the nearest of all is itself, at 0
    return float(disc_overlap(np.asarray(distance)[:, 1:], plan.probe_diameter_px).mean())


def _between_groups(centroids: Doubles, diameter_px: float) -> float:
    shares = []
    for start in range(0, len(centroids), _ROWS):  # all pairs of a long scan at once would fill the memory
        distance = cdist(centroids[start : start + _ROWS], centroids)
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        near = distance < diameter_px
        shared = disc_overlap(np.where(near, distance, diameter_px), diameter_px).sum(axis=1)
        shares.append(shared / np.maximum(near.sum(axis=1), 1))
    return float(np.concatenate(shares).mean())
