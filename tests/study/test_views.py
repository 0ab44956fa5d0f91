"""Which frames a view keeps, and how much they overlap, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import PlanError
from pipeline.study.views import (
    OverlapPlan,
    acceptance_bound,
    disc_overlap,
    drawn_view,
    measured_groups,
    overlap_metrics,
    spaced_view,
)

D = 38.4
coordinates = arrays(np.int64, st.tuples(st.integers(1, 60), st.just(2)), elements=st.integers(0, 6400)).map(
    lambda steps: steps / 64  # exact in float64, also where all are moved
)


def plan(**changes: object) -> OverlapPlan:
    values = {"gridsize": 2, "s_img": 1.0, "n_groups": 512, "neighbor_count": 6, "probe_diameter_px": D, "seed": 1}
    return OverlapPlan(**{**values, **changes})


def measured(positions: object, **changes: object) -> dict:
    points = np.asarray(positions, dtype=np.float64)
    return overlap_metrics(points, plan(**changes), n_images_total=len(points))


@pytest.mark.parametrize(
    ("distance", "shared"),
    [(0, 1), (9.6, 0.685038), (19.2, 0.391002), (28.8, 0.144294), (34.56, 0.037386), (38.4, 0), (100, 0)],
)
def test_two_discs_share_the_area_of_their_lens(distance: float, shared: float) -> None:
    assert disc_overlap(distance, D) == pytest.approx(shared, abs=5e-7)


def test_the_lens_is_what_counting_points_finds() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (400_000, 2))
    inside = np.hypot(*points.T) < 1
    for distance in (0.3, 1.0, 1.7):
        both = inside & (np.hypot(points[:, 0] - distance, points[:, 1]) < 1)
        assert disc_overlap(distance, 2.0) == pytest.approx(both.sum() / inside.sum(), abs=4e-3)


def f(distance: float) -> float:
    """The same by hand, from the text of the formula."""
    r = D / 2
    if distance >= D:
        return 0.0
    lens = 2 * r * r * math.acos(distance / (2 * r)) - distance / 2 * math.sqrt(4 * r * r - distance * distance)
    return lens / (math.pi * r * r)


def test_four_frames_on_a_square_have_the_overlap_of_its_sides_and_diagonals() -> None:
    found = measured([(0, 0), (0, 10), (10, 0), (10, 10)])
    mean = (2 * f(10) + f(10 * math.sqrt(2))) / 3
    assert found["metric_1_group_based_avg"] == pytest.approx(mean)
    assert found["metric_2_image_based_avg"] == pytest.approx(mean)
    assert found["metric_3_group_to_group_avg"] == pytest.approx(1)  # four groups of the same four frames
    assert (found["n_groups_actual"], found["n_unique_images"], found["n_images_subsampled"]) == (4, 4, 4)


def test_only_the_nearest_fellows_and_neighbours_count() -> None:
    found = measured([(0, 0), (0, 10), (10, 0), (10, 10)], neighbor_count=1)
    assert found["metric_1_group_based_avg"] == pytest.approx(f(10))
    assert found["metric_2_image_based_avg"] == pytest.approx(f(10))


def test_frames_at_one_place_count_once_for_metric_2_and_a_single_place_gives_nothing() -> None:
    found = measured([(0, 0), (0, 0), (0, 20)], gridsize=1)
    assert found["n_unique_images"] == 2
    assert found["metric_2_image_based_avg"] == pytest.approx(f(20))
    assert measured([(5, 5)] * 4)["metric_2_image_based_avg"] == 0


def test_single_frames_have_no_metric_inside_groups_and_their_positions_as_centroids() -> None:
    found = measured([(0, 0), (0, 20), (0, 100)], gridsize=1)
    assert "metric_1_group_based_avg" not in found
    assert found["metric_3_group_to_group_avg"] == pytest.approx((f(20) + f(20) + 0) / 3)
    assert found["n_groups_actual"] == 3


def test_two_far_clusters_give_groups_that_do_not_touch() -> None:
    square = np.array([(0, 0), (0, 6), (6, 0), (6, 6)], dtype=float)
    found = measured(np.concatenate([square, square + 500]), neighbor_count=3)
    inside = (2 * f(6) + f(6 * math.sqrt(2))) / 3
    assert found["metric_1_group_based_avg"] == pytest.approx(inside)
    assert found["metric_2_image_based_avg"] == pytest.approx(inside)
    assert found["metric_3_group_to_group_avg"] == pytest.approx(1)  # with its own cluster's groups alone


def test_the_bound_of_what_can_be_kept_is_that_of_the_box_and_at_most_a_tenth() -> None:
    positions = np.array([(0.0, 0.0), (30.0, 40.0)] * 50)
    assert acceptance_bound(positions, diameter_px=D) == pytest.approx(1200 / (100 * math.pi * 19.2**2))
    assert acceptance_bound(positions[:2] * 100, diameter_px=D) == 0.10
    found = measured([(3, 3)] * 4)
    assert (found["geometry_acceptance_bound"], found["effective_min_acceptance"]) == (0, 1e-6)


@given(coordinates.filter(lambda points: len(points) >= 4))
def test_every_metric_is_a_share_and_does_not_change_when_the_scan_is_moved(points: np.ndarray) -> None:
    found, moved = measured(points), measured(points + 256)
    for key in ("metric_1_group_based_avg", "metric_2_image_based_avg", "metric_3_group_to_group_avg"):
        assert -1e-12 <= found[key] <= 1 + 1e-12
    assert moved["metric_2_image_based_avg"] == pytest.approx(found["metric_2_image_based_avg"], abs=1e-5)


@given(coordinates.filter(lambda points: len(points) >= 4), st.integers(1, 80), st.integers(0, 5))
def test_measured_groups_are_a_frame_and_its_nearest(points: np.ndarray, n_groups: int, seed: int) -> None:
    members = measured_groups(points, gridsize=2, n_groups=n_groups, seed=seed)
    assert members.shape == (min(n_groups, len(points)), 4)
    assert len(set(members[:, 0])) == len(members)
    for group in members:
        assert len(set(group)) == 4
        distance = np.hypot(*(points - points[group[0]]).T)
        assert sorted(distance[group]) == pytest.approx(sorted(distance)[:4])


def test_fewer_frames_than_members_are_refused() -> None:
    with pytest.raises(PlanError, match="3 frames"):
        measured([(0, 0), (1, 1), (2, 2)])


@given(st.integers(1, 500), st.floats(0.001, 1), st.integers(0, 100))
def test_a_draw_keeps_the_share_in_order_and_the_same_each_time(n: int, share: float, seed: int) -> None:
    kept = drawn_view(n, s_img=share, seed=seed)
    assert len(kept) == max(round(share * n), 1)
    assert np.all(np.diff(kept) > 0)
    assert 0 <= kept[0] <= kept[-1] < n
    assert np.array_equal(kept, drawn_view(n, s_img=share, seed=seed))


def test_another_seed_draws_others_and_every_frame_is_drawn_as_often() -> None:
    assert not np.array_equal(drawn_view(100, s_img=0.5, seed=1), drawn_view(100, s_img=0.5, seed=2))
    counts = np.bincount(np.concatenate([drawn_view(20, s_img=0.5, seed=s) for s in range(400)]), minlength=20)
    assert counts.min() > 150
    assert counts.max() < 250


@given(coordinates, st.floats(0.5, 60))
def test_kept_frames_lie_apart_and_every_other_one_lies_near_an_earlier_kept_one(points: np.ndarray, s: float) -> None:
    kept = spaced_view(points, spacing_px=s)
    assert kept[0] == 0
    distance = np.hypot(*np.moveaxis(points[:, None] - points[kept], -1, 0))
    for row, frame in enumerate(kept):
        assert np.all(np.delete(distance[frame], row) >= s)
    for frame in set(range(len(points))) - set(kept):
        assert np.any(distance[frame][kept < frame] < s)


def test_a_distance_of_exactly_the_spacing_is_enough() -> None:
    assert list(spaced_view(np.array([(0.0, 0.0), (3.0, 4.0), (3.0, 3.0)]), spacing_px=5.0)) == [0, 1]
