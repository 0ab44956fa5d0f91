"""Groups are a seed frame and some of its nearest others, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PlanError
from pipeline.sampling.grouping import contiguous_windows, group_frames, nearest_others
from pipeline.seeding import Purpose, permutation, rng_for, words


def brute_force_nearest(positions: np.ndarray, k: int) -> np.ndarray:
    """Neighbours by sorting all distances, ties by index."""
    distance = np.hypot(*(positions[:, None] - positions[None]).transpose(2, 0, 1))
    rows = [[j for _, j in sorted((distance[i, j], j) for j in range(len(positions)) if j != i)[:k]]
            for i in range(len(positions))]  # fmt: skip
    return np.array(rows)


clouds = st.one_of(
    st.tuples(st.integers(9, 60), st.integers(0, 2**16)).map(
        lambda t: np.random.default_rng(t[1]).uniform(0, 40, (t[0], 2))
    ),
    st.tuples(st.integers(3, 7), st.integers(3, 7)).map(lambda t: np.argwhere(np.ones(t)).astype(float)),  # all ties
    st.integers(9, 20).map(lambda n: np.zeros((n, 2))),  # all frames at one place
)  # fmt: skip


@given(positions=clouds, k=st.integers(1, 8))
def test_nearest_others_are_those_of_an_exhaustive_search(positions: np.ndarray, k: int) -> None:
    np.testing.assert_array_equal(nearest_others(positions, k), brute_force_nearest(positions, k))


@given(positions=clouds, gridsize=st.sampled_from([1, 2]), seed=st.integers(0, 99), share=st.floats(0.1, 1.0))
def test_members_are_distinct_the_seed_first_the_rest_from_its_nearest(
    positions: np.ndarray, gridsize: int, seed: int, share: float
) -> None:
    n_groups = max(1, int(share * len(positions)))
    members = group_frames(positions, gridsize=gridsize, n_groups=n_groups, seed=seed).members
    nearest = nearest_others(positions, min(7, len(positions) - 1))
    assert members.shape == (n_groups, gridsize**2)
    assert len(set(members[:, 0])) == n_groups
    for row in members:
        assert len(set(row)) == len(row)
        assert set(row[1:]) <= set(nearest[row[0]])


@given(positions=clouds, seed=st.integers(0, 99), cut=st.floats(0, 1))
def test_members_within_a_window_are_those_of_the_window_alone(positions: np.ndarray, seed: int, cut: float) -> None:
    n = len(positions)
    first = 4 + int(cut * (n - 8))
    window = (np.arange(n) >= first).astype(np.int64)
    members = group_frames(positions, gridsize=2, n_groups=n, seed=seed, window_of=window).members
    assert (window[members] == window[members[:, :1]]).all()
    pool = min(7, first - 1, n - first - 1)
    nearest = np.concatenate([nearest_others(positions[:first], pool), first + nearest_others(positions[first:], pool)])
    for row in members:
        assert set(row[1:]) <= set(nearest[row[0]])


def test_a_window_too_small_for_a_group_is_refused_with_the_option_that_helps() -> None:
    window = np.array([0] * 9 + [1] * 3)
    with pytest.raises(PlanError, match="window of 3 frames") as failure:
        group_frames(np.zeros((12, 2)), gridsize=2, n_groups=12, seed=0, window_of=window)
    assert failure.value.hint == "leave --neighbors-within out"


@given(n_chunks=st.integers(1, 3000), most=st.integers(1, 40))
def test_windows_are_few_and_of_nearly_equal_length(n_chunks: int, most: int) -> None:
    windows = contiguous_windows(n_chunks, most=most)
    sizes = np.bincount(windows)
    assert windows.shape == (n_chunks,)
    assert (np.diff(windows) >= 0).all()
    assert len(sizes) == -(-n_chunks // most)
    assert sizes.max() <= most
    assert sizes.max() - sizes.min() <= 1


def test_one_group_per_frame_visits_every_frame_in_order() -> None:
    positions = np.random.default_rng(0).uniform(0, 40, (30, 2))
    members = group_frames(positions, gridsize=2, n_groups=30, seed=5).members
    np.testing.assert_array_equal(members[:, 0], np.arange(30))


def test_the_same_seed_gives_the_same_groups_and_another_seed_others() -> None:
    positions = np.random.default_rng(0).uniform(0, 40, (50, 2))
    first, again, other = (group_frames(positions, gridsize=2, n_groups=20, seed=s).members for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_oversampling_gives_no_group_twice_while_there_are_combinations_left() -> None:
    positions = np.random.default_rng(0).uniform(0, 40, (10, 2))
    members = group_frames(positions, gridsize=2, n_groups=350, seed=0, allow_oversampling=True).members
    groups = {(row[0], *sorted(row[1:])) for row in members.tolist()}
    assert len(groups) == 350  # 10 seeds x 35 combinations of 3 out of 7


@pytest.mark.parametrize(
    ("n_groups", "neighbors", "opted_in"),
    [(10, 3, False), (60, 7, False), (60, 4, True)],
    ids=["K<C", "unasked", "K=C"],
)
def test_oversampling_001_is_refused_before_any_work(n_groups: int, neighbors: int, opted_in: bool) -> None:
    positions = np.random.default_rng(0).uniform(0, 40, (50, 2))
    with pytest.raises(PlanError, match="OVERSAMPLING-001") as failure:
        group_frames(positions, gridsize=2, n_groups=n_groups, seed=0, neighbors=neighbors, allow_oversampling=opted_in)
    assert failure.value.exit_code == 2


def test_too_few_frames_for_a_group_are_refused() -> None:
    with pytest.raises(PlanError, match="3 frames"):
        group_frames(np.zeros((3, 2)), gridsize=2, n_groups=1, seed=0)


def test_more_single_frames_than_there_are_is_capped_and_said() -> None:
    grouping = group_frames(np.zeros((5, 2)), gridsize=1, n_groups=9, seed=0)
    assert len(grouping.members) == 5
    assert grouping.notes


def test_fewer_others_than_asked_for_is_said() -> None:
    positions = np.random.default_rng(0).uniform(0, 40, (6, 2))
    assert group_frames(positions, gridsize=2, n_groups=6, seed=0).notes


def test_groups_are_golden() -> None:
    positions = np.argwhere(np.ones((4, 4))).astype(float)
    members = group_frames(positions, gridsize=2, n_groups=3, seed=7).members
    assert members.tolist() == GOLDEN_GROUPS


GOLDEN_GROUPS = [[12, 14, 5, 8], [8, 0, 9, 4], [10, 7, 11, 6]]


def test_words_are_golden() -> None:
    assert [int(w) for w in words(7, Purpose.GROUP_SEEDS, 1, n=2)] == GOLDEN_WORDS
    assert permutation(7, Purpose.GROUP_SEEDS, n=6).tolist() == GOLDEN_PERMUTATION


GOLDEN_WORDS = [6974519476308228622, 10068361986933556379]
GOLDEN_PERMUTATION = [2, 4, 3, 1, 0, 5]


def test_purposes_and_keys_never_share_a_stream() -> None:
    streams = [words(3, purpose, key, n=4).tobytes() for purpose in Purpose for key in range(5)]
    assert len(set(streams)) == len(streams)
    assert rng_for(3, Purpose.POISSON, 1).random() == rng_for(3, Purpose.POISSON, 1).random()
