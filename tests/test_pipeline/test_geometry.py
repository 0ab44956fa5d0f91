"""Positions in pixels, steps, overlap, and where zero frequency seems to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scan.declaration import ORIGINS
from pipeline.scan.geometry import (
    disc_overlap,
    nearest_step,
    origin_offset,
    probe_diameter,
    zero_frequency_is_central,
)


@pytest.mark.parametrize(
    ("distance", "overlap"), [(0, 1), (9.6, 0.685038), (19.2, 0.391002), (28.8, 0.144294), (34.56, 0.037386), (38.4, 0)]
)
def test_disc_overlap_has_its_known_values(distance: float, overlap: float) -> None:
    assert disc_overlap(distance, 38.4) == pytest.approx(overlap, abs=1e-6)


@given(side=st.integers(2, 300), start=st.integers(0, 100))
def test_all_origins_name_the_same_window(side: int, start: int) -> None:
    points_at = {"n/2": start + side // 2, "n/2-0.5": start + (side - 1) / 2, "corner": start}
    positions = {origin: points_at[origin] + origin_offset(origin, side) for origin in ORIGINS}
    assert set(positions.values()) == {start + side // 2}


def test_the_nearest_step_of_a_raster_is_its_pitch() -> None:
    raster = np.argwhere(np.ones((4, 5))) * 3.0
    assert nearest_step(raster) == 3.0
    assert nearest_step(raster[:1]) is None


def test_a_disc_is_as_wide_as_it_was_drawn() -> None:
    y, x = np.mgrid[-32:32, -32:32]
    disc = (np.hypot(y, x) <= 10).astype(np.complex64)[np.newaxis]
    assert probe_diameter(disc) == pytest.approx(20, abs=0.5)


def test_frames_with_zero_frequency_in_the_corner_are_noticed() -> None:
    y, x = np.mgrid[-16:16, -16:16]
    frames = np.exp(-(y**2 + x**2) / 18.0)[np.newaxis]
    assert zero_frequency_is_central(frames)
    assert not zero_frequency_is_central(np.fft.ifftshift(frames, axes=(1, 2)))
    assert zero_frequency_is_central(np.ones((3, 5, 7)))
