"""Patches and their groups: closed forms, exact gradients, and the one geometry that gives the object back."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.errors import PlanError  # noqa: E402  # behind the check that torch is there
from pipeline.physics.forward import (  # noqa: E402
    CanvasGeometry,
    expected_intensity,
    extract,
    pad_canvas,
    scatter,
    to_corner,
    windows_at,
)
from pipeline.physics.gauge import BLANK  # noqa: E402
from pipeline.physics.groups import (  # noqa: E402
    other_groups,
    own_group,
    parts_that_fit,
    plots_of,
    refuse_apart,
    restitched,
    whole_cluster,
)
from pipeline.physics.patches import (  # noqa: E402
    asked_change,
    flat_patches,
    mean_amplitude,
    patch_fields,
    patch_intensity,
    patch_loss,
    patch_optics,
)
from tests.patched_scans import cut, optics_of, random_patches, truth_of  # noqa: E402
from tests.physics_scans import make_scan  # noqa: E402

F64 = torch.float64


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)


@functools.cache
def scan_of(modes: int = 1):
    return make_scan(noise=False, modes=modes)


def tiny_optics(*, modes: int = 1, support: int = 6, n: int = 8, bad: bool = False):
    """Optics of random light, small enough for every gradient."""
    scan = make_scan(noise=False, n_frames=4, n=32, modes=modes)
    rng = torch.Generator().manual_seed(1)
    probe = torch.view_as_complex(torch.randn(modes, n, n, 2, generator=rng, dtype=F64)) * 3
    valid = torch.ones(n, n, dtype=torch.bool)
    valid[2, 3:5] = not bad
    optics = optics_of(replace(scan, probe=probe.numpy()), support=support, valid=valid)
    return patch_optics(optics)


def counts_of(n: int, side: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.rand(n, side, side, generator=rng, dtype=F64) * 20 + 1


# --- one patch and its frame


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("support", [32, 20])
def test_no_photon_is_lost_on_the_way_to_the_detector(modes: int, support: int) -> None:
    """Parseval: the light on the detector is the light that leaves patch and surround."""
    full = optics_of(scan_of(modes), support=support)
    optics = patch_optics(full)
    patches, level = random_patches(5, support), torch.linspace(0.5, 0.9, 5, dtype=F64)
    seen = patch_intensity(patch_fields(patches, level, optics)).sum((1, 2))
    inside = (full.support_probe * patches[:, None]).abs().square().sum((1, 2, 3))
    outside = full.probe.abs().square().sum() - full.support_probe.abs().square().sum()
    assert torch.allclose(seen, inside + level.square() * outside, rtol=1e-12)


def test_modes_add_as_intensities() -> None:
    optics = tiny_optics(modes=3)
    patches, level = random_patches(4, 6), torch.full((4,), 0.6, dtype=F64)
    alone = [
        patch_intensity(
            patch_fields(
                patches, level, replace(optics, probe=optics.probe[k : k + 1], surround=optics.surround[k : k + 1])
            )
        )
        for k in range(3)
    ]
    assert torch.allclose(patch_intensity(patch_fields(patches, level, optics)), sum(alone), rtol=1e-12)


@pytest.mark.parametrize("modes", [1, 2])
def test_patches_predict_the_frames_that_the_canvas_predicts(modes: int) -> None:
    """Also where a patch is cut between pixels, and with the light outside the support."""
    scan = scan_of(modes)
    full = optics_of(scan, support=24)
    where = torch.from_numpy(scan.positions[:6])
    obj = truth_of(scan, full)
    patches = cut(obj, where, support=24)
    level = torch.full((6,), BLANK, dtype=F64)
    found = patch_intensity(patch_fields(patches, level, patch_optics(full)))
    assert torch.allclose(found, to_corner(expected_intensity(obj, where, full)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [False, True])
def test_the_level_is_the_flat_object_as_bright_as_the_frame(bad: bool) -> None:
    optics = tiny_optics(modes=2, bad=bad)
    level = torch.tensor([0.4, 0.9], dtype=F64)
    frames = patch_intensity(patch_fields(flat_patches(level, optics), level, optics))
    if bad:
        frames[:, optics.bad] = 1e9
    assert torch.allclose(mean_amplitude(frames, optics), level, rtol=1e-12)


@pytest.mark.parametrize("modes", [1, 2])
def test_more_light_changes_nothing_that_is_said_of_the_object(modes: int) -> None:
    """Counts times d with a probe times sqrt(d)."""
    scan, dose = scan_of(modes), 7.3
    measured = to_corner(torch.from_numpy(scan.intensity[:5]))
    patches = random_patches(5, 32)
    found = []
    for factor in (1.0, dose):
        optics = patch_optics(optics_of(scan, dose=factor))
        level = mean_amplitude(measured * factor, optics)
        found.append((level, asked_change(patches, level, measured * factor, optics, damping=0.1)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_a_patch_that_predicts_its_frame_is_asked_nothing() -> None:
    optics = tiny_optics(modes=2)
    patches, level = random_patches(3, 6), torch.full((3,), 0.7, dtype=F64)
    measured = patch_intensity(patch_fields(patches, level, optics))
    assert float(asked_change(patches, level, measured, optics, damping=0.1).abs().max()) < 1e-12
    loss = patch_loss(patches, level, measured, optics, loss="poisson", background=1e-9)
    assert abs(float(loss)) < 1e-12


def test_a_step_as_asked_predicts_the_frame_better() -> None:
    scan = scan_of()
    optics = patch_optics(optics_of(scan))
    measured = to_corner(torch.from_numpy(scan.intensity[:8]))
    level = mean_amplitude(measured, optics)
    start = flat_patches(level, optics)
    step = start + 0.5 * asked_change(start, level, measured, optics, damping=0.1)
    losses = [
        float(patch_loss(patches, level, measured, optics, loss="poisson", background=0.01))
        for patches in (start, step)
    ]
    assert losses[1] < 0.8 * losses[0]


def test_pixels_without_meaning_say_nothing() -> None:
    optics = tiny_optics(bad=True)
    patches, level, measured = random_patches(3, 6), torch.full((3,), 0.7, dtype=F64), counts_of(3, 8)
    spoilt = measured.clone()
    spoilt[:, optics.bad] = 1e6
    for function in (
        lambda frames: asked_change(patches, level, frames, optics, damping=0.1),
        lambda frames: patch_loss(patches, level, frames, optics, loss="poisson", background=0.01),
    ):
        assert torch.equal(function(measured), function(spoilt))


@pytest.mark.parametrize("loss", ["poisson", "amplitude"])
@pytest.mark.parametrize("modes", [1, 2])
def test_the_gradient_of_the_loss_is_exact(loss: str, modes: int) -> None:
    optics, level, measured = tiny_optics(modes=modes, bad=True), torch.full((2,), 0.7, dtype=F64), counts_of(2, 8)
    assert torch.autograd.gradcheck(
        lambda patches: patch_loss(patches, level, measured, optics, loss=loss, background=0.01),
        random_patches(2, 6).requires_grad_(),
    )


@pytest.mark.parametrize("modes", [1, 2])
def test_the_gradient_of_what_is_asked_is_exact(modes: int) -> None:
    optics, level, measured = tiny_optics(modes=modes, bad=True), torch.full((2,), 0.7, dtype=F64), counts_of(2, 8)
    assert torch.autograd.gradcheck(
        lambda patches: asked_change(patches, level, measured, optics, damping=0.1),
        random_patches(2, 6).requires_grad_(),
    )


# --- groups

POSITIONS = torch.tensor(
    [
        [[10.2, 7.9], [12.6, 8.3], [9.0, 10.5]],
        [[12.6, 8.3], [13.1, 12.7], [11.0, 11.0]],
        [[40.5, 3.25], [41.0, 5.0], [38.2, 4.4]],
        [[41.0, 5.0], [42.9, 2.0], [40.0, 3.3]],
    ],
    dtype=F64,
)
"""Two clusters of two groups of three members; the groups of a cluster share a frame."""
INDICES = torch.tensor([[0, 1, 2], [1, 3, 4], [5, 6, 7], [6, 8, 9]])


def directly(patches, positions, *, reader, light, level) -> torch.Tensor:
    """What a frame at `reader` sees of patches laid on a canvas of their own."""
    geometry = CanvasGeometry(origin=(-20, -20), shape=(100, 60))
    num = pad_canvas(torch.zeros(geometry.shape, dtype=torch.complex128), outside=0)
    den = pad_canvas(torch.zeros(geometry.shape, dtype=F64), outside=0)
    if len(patches):
        windows = windows_at(positions, geometry=geometry, support=len(light), dtype=F64)
        scatter(patches * light, windows, onto=num)
        scatter(light.expand(len(patches), -1, -1), windows, onto=den)
    made = (num + 1e-4 * level) / (den + 1e-4)
    return extract(made, windows_at(reader[None], geometry=geometry, support=len(light), dtype=F64))[0]


def views(optics):
    plots = plots_of(POSITIONS, optics, cluster_size=2)
    group, cluster = torch.arange(12) // 3, torch.arange(12) // 6
    frames = INDICES.flatten()
    holds = torch.stack([(INDICES[group] == frame).any(1) for frame in frames])
    same = cluster[:, None] == cluster
    return plots, {
        "own": (own_group(plots), group[:, None] == group),
        "cluster": (whole_cluster(plots), same),
        "others": (other_groups(plots, INDICES), same & ~holds),
    }


@pytest.mark.parametrize("name", ["own", "cluster", "others"])
def test_a_member_reads_what_its_view_lays_down(name: str) -> None:
    optics = tiny_optics()
    plots, known = views(optics)
    view, laid_by = known[name]
    patches, level = random_patches(12, 6), torch.linspace(0.5, 0.9, 12, dtype=F64)
    found = restitched(patches, level, plots, view, optics)
    where = POSITIONS.reshape(12, 2)
    for member in range(12):
        chosen = laid_by[member]
        wanted = directly(patches[chosen], where[chosen], reader=where[member], light=optics.light, level=level[member])
        assert torch.allclose(found[member], wanted, rtol=1e-10, atol=1e-12)


def test_a_frame_is_predicted_from_nothing_that_has_seen_it() -> None:
    """Frame 1 is in two groups of its cluster; all that they say is left out."""
    optics = tiny_optics()
    plots, known = views(optics)
    patches, level = random_patches(12, 6), torch.full((12,), 0.7, dtype=F64)
    other = patches.clone()
    other[:6] = 5.0
    seen = [restitched(p, level, plots, known["others"][0], optics) for p in (patches, other)]
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.allclose(seen[0][1], torch.full((6, 6), 0.7, dtype=torch.complex128))
    assert not torch.allclose(seen[0][0], seen[1][0])  # frame 0 is seen by the second group


@pytest.mark.parametrize("name", ["own", "cluster", "others"])
def test_the_gradient_of_stitching_is_exact(name: str) -> None:
    optics = tiny_optics()
    plots, known = views(optics)
    level = torch.full((12,), 0.7, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda patches: restitched(patches, level, plots, known[name][0], optics),
        random_patches(12, 6).requires_grad_(),
        fast_mode=True,
    )


def test_the_order_of_members_does_not_matter() -> None:
    optics = tiny_optics()
    patches, level = random_patches(4, 6), torch.full((4,), 0.7, dtype=F64)
    where = torch.tensor([[[10.2, 7.9], [12.6, 8.3], [9.0, 10.5], [11.4, 6.1]]], dtype=F64)
    order = torch.tensor([2, 0, 3, 1])
    found = []
    for p, w in ((patches, where), (patches[order], where[:, order])):
        plots = plots_of(w, optics, cluster_size=1)
        found.append(restitched(p, level, plots, own_group(plots), optics))
    assert torch.allclose(found[0][order], found[1], rtol=1e-12)


def test_a_shift_of_all_positions_changes_nothing() -> None:
    optics = tiny_optics()
    patches, level = random_patches(12, 6), torch.full((12,), 0.7, dtype=F64)
    found = []
    for shift in (0.0, -1000.0):
        plots = plots_of(POSITIONS + shift, optics, cluster_size=2)
        found.append(restitched(patches, level, plots, whole_cluster(plots), optics))
    assert torch.allclose(found[0], found[1], rtol=1e-9)


def test_stitching_has_the_same_bits_each_time() -> None:
    optics = tiny_optics()
    plots, known = views(optics)
    level = torch.full((12,), 0.7, dtype=F64)
    found = []
    for _ in range(2):
        patches = random_patches(12, 6).requires_grad_()
        seen = restitched(patches, level, plots, known["others"][0], optics)
        seen.abs().square().sum().backward()
        found.append((seen.detach(), patches.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_groups_too_far_apart_are_refused() -> None:
    where = torch.tensor([[[0.0, 0.0]], [[9000.0, 9000.0]]], dtype=F64)
    with pytest.raises(PlanError, match="lie 9000 x 9000 px apart"):
        plots_of(where, tiny_optics(), cluster_size=2)


@given(
    extents=st.lists(st.integers(0, 9000), min_size=1, max_size=12),
    members=st.integers(2, 4),
    support=st.integers(2, 400),
)
@example(extents=[9000, 10, 9000, 9000, 10, 10, 4000], members=4, support=400)
@example(extents=[10] * 12, members=4, support=400)
def test_parts_of_a_batch_are_whole_runs_of_groups_that_fit(extents: list[int], members: int, support: int) -> None:
    where = torch.zeros(len(extents), members, 2, dtype=F64)
    where[:, -1, 0] = torch.tensor(extents, dtype=F64)
    parts = parts_that_fit(where, support=support)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(extents)))
    for part in parts:
        refuse_apart(where[part], support=support, cluster_size=1)
    for one, other in itertools.pairwise(parts):  # the next group would not have fitted
        with pytest.raises(PlanError):
            refuse_apart(where[one.start : other.start + 1], support=support, cluster_size=1)


# --- perfect patches


def gone_wrong(name: str, patches: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and positions of groups (B, C, ...), one thing about them mistaken."""
    mean = where.mean(1, keepdim=True)
    relative = where - mean
    return {
        "nothing": (patches, where),
        "axes swapped": (patches, where.flip(-1)),
        "offset mirrored": (patches, mean - relative),
        "patch flipped": (patches.flip(-1), where),
        "patch transposed": (patches.transpose(-2, -1), where),
        "paired with the next frame": (patches.roll(1, 1), where),
    }[name]


def errors_of(name: str) -> tuple[float, float]:
    """How far the object that groups of 4 perfect patches make is from the truth there, and from their frames.

    Patches are cut from the object at positions between pixels, put together by group and read again; the first error
    is relative to the patches, the second is the loss per pixel of the frames.
    """
    scan = scan_of()
    full = optics_of(scan, support=32)
    optics = patch_optics(full)
    positions = torch.from_numpy(scan.positions)
    near = (positions[:, None] - positions).square().sum(-1).argsort(1)[:40, :4]
    where = positions[near]
    perfect = cut(truth_of(scan, full), where.reshape(-1, 2), support=32)
    patches, wrong = gone_wrong(name, perfect.view(40, 4, 32, 32), where)
    level = torch.full((160,), BLANK, dtype=F64)
    plots = plots_of(wrong, optics, cluster_size=1)
    seen = restitched(patches.reshape(160, 32, 32), level, plots, own_group(plots), optics)
    weight = optics.light.sqrt()
    error = ((seen - perfect) * weight).norm() / (perfect * weight).norm()
    measured = to_corner(torch.from_numpy(scan.intensity))[near.flatten()]
    loss = patch_loss(seen, level, measured, optics, loss="poisson", background=0.01)
    return float(error), float(loss)


def test_perfect_patches_give_the_object_back() -> None:
    """To 0.76 %, what two bilinear steps blur; the frames to 0.0017 a pixel (flat patches: 0.085)."""
    error, loss = errors_of("nothing")
    assert error < 0.008
    assert loss < 0.002


@pytest.mark.parametrize(
    "name",
    ["axes swapped", "offset mirrored", "patch flipped", "patch transposed", "paired with the next frame"],
)
def test_any_other_geometry_is_worse(name: str) -> None:
    right, wrong = errors_of("nothing"), errors_of(name)
    assert wrong[0] > 4 * right[0]
    assert wrong[1] > 15 * right[1]
