"""What pictures promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.picture import colour_wheel, complex_image, linear_image, log_image, phase_image, save_png, upscale

COUNTS = arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=8))
PIXELS = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))


def lightness(rgb):
    """CIE 1976 L* of sRGB pixels, 0...100 (IEC 61966-2-1)."""
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


@given(COUNTS)
def test_more_counts_are_never_darker(counts):
    order = np.argsort(counts, axis=None)
    light = lightness(log_image(counts)).ravel()[order]
    assert (np.diff(light) > -0.5).all()


def test_the_palette_rises_evenly_in_lightness():
    light = lightness(linear_image(np.arange(256.0)[None]))[0]
    steps = np.diff(light[::15])
    assert light[0] < 10
    assert light[-1] > 93
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


def test_counts_are_shown_by_their_logarithm():
    equal_ratios = np.array([[0, 9, 99, 999]])
    assert np.array_equal(log_image(equal_ratios), linear_image(np.array([[0, 1, 2, 3]])))


def test_values_beyond_given_limits_take_the_last_colour():
    ramp = np.array([[-5.0, 0.0, 1.0, 7.0]])
    rgb = linear_image(ramp, (0, 1))[0]
    assert np.array_equal(rgb[0], rgb[1])
    assert np.array_equal(rgb[2], rgb[3])
    assert np.array_equal(
        log_image(np.array([[0, 10, 500]]), (0, 10))[0, 1:], log_image(np.array([[0, 10, 10]]))[0, 1:]
    )


@pytest.mark.parametrize("constant", [0, 7])
def test_a_constant_image_has_one_colour(constant):
    assert len(np.unique(log_image(np.full((3, 4), constant)).reshape(-1, 3), axis=0)) == 1


def test_what_is_not_a_number_is_grey_and_leaves_the_scale_alone():
    values = np.array([[0.0, 1.0, np.nan, np.inf]])
    rgb = linear_image(values)
    assert np.array_equal(rgb[:, :2], linear_image(values[:, :2]))
    assert (rgb[0, 2:] == 128).all()
    assert (complex_image(np.array([[1.0, np.nan + 0j]]))[0, 1] == 128).all()
    assert (linear_image(np.full((2, 2), np.nan)) == 128).all()


def test_the_colours_of_all_phases_are_equally_light():
    light = lightness(phase_image(np.linspace(-np.pi, np.pi, 360)[None]))
    assert np.ptp(light) < 8


def test_amplitude_is_brightness_and_zero_is_black():
    rgb = complex_image(np.linspace(0, 1, 50)[None] * np.exp(0.7j))
    assert (rgb[0, 0] == 0).all()
    assert (np.diff(lightness(rgb)[0]) >= 0).all()


@given(st.floats(-np.pi, np.pi))
def test_phase_wraps_without_a_seam(phase):
    there, turned = (phase_image(np.array([[p]])).astype(int) for p in (phase, phase + 2 * np.pi))
    assert np.abs(there - turned).max() <= 1


def test_opposite_phases_and_both_signs_look_different():
    rgb = complex_image(np.exp(1j * np.array([[0, np.pi / 2, np.pi, -np.pi / 2]])))[0].astype(int)
    distance = np.abs(rgb[:, None] - rgb[None]).sum(-1) + 1000 * np.eye(4)
    assert distance.min() > 60


def test_the_brightest_amplitude_can_be_given():
    z = np.array([[0.5, 1.0, 2.0]], dtype=np.complex64)
    rgb = complex_image(z, amplitude_max=1.0)[0]
    assert np.array_equal(rgb[1], rgb[2])
    assert np.array_equal(rgb[:2], complex_image(z[:, :2])[0])


def test_the_wheel_shows_phase_zero_to_the_right_and_a_quarter_turn_up():
    wheel = colour_wheel(21)
    right, top, left, bottom, centre = wheel[10, 20], wheel[0, 10], wheel[10, 0], wheel[20, 10], wheel[10, 10]
    expected = complex_image(np.array([[1, 1j, -1, -1j, 0]]))[0]
    assert np.array_equal(np.stack([right, top, left, bottom, centre]), expected)


def test_the_wheel_is_a_disc_on_its_background():
    wheel = colour_wheel(21, background=(1, 2, 3))
    assert (wheel[[0, 0, -1, -1], [0, -1, 0, -1]] == (1, 2, 3)).all()
    assert 0.7 < np.mean((wheel != (1, 2, 3)).any(axis=-1)) < 0.9


@given(PIXELS, st.integers(1, 4))
def test_upscaling_makes_squares(rgb, k):
    big = upscale(rgb, k)
    assert big.shape == (k * rgb.shape[0], k * rgb.shape[1], 3)
    for i in range(k):
        assert np.array_equal(big[i::k, k - 1 - i :: k], rgb)


def test_a_png_holds_the_pixels_and_nothing_else(tmp_path):
    rgb = complex_image(np.exp(1j * np.linspace(0, 6, 200)).reshape(10, 20))
    for name in ("one.png", "two.png"):
        save_png(tmp_path / name, rgb)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "two.png").read_bytes()
    assert chunk_names(data) == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), rgb)


def chunk_names(png):
    names, at = set(), 8
    while at < len(png):
        names.add(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return names
