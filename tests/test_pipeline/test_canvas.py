"""The canvas network's parts: exact gradients, exact geometry, nothing learned from a frame's own noise."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from hypothesis import given  # noqa: E402  # behind the check that torch is there
from hypothesis import strategies as st  # noqa: E402

from pipeline.config import FitConfig, SolverConfig, StreamConfig  # noqa: E402
from pipeline.errors import DivergedError, PlanError  # noqa: E402
from pipeline.learning.canvas import (  # noqa: E402
    INPUTS,
    CanvasTask,
    blank_halves,
    correction,
    crop_around,
    frame_loss,
    halves_of,
    improved,
    inside,
    solve_halves,
    start_of,
    started,
    symmetric,
    unsymmetric,
)
from pipeline.learning.fit import begin_fit, fit, learning_rate, pack_fit, unpack_fit  # noqa: E402
from pipeline.learning.networks import UNet, initialise  # noqa: E402
from pipeline.physics.forward import CanvasGeometry, Frames, expected_intensity  # noqa: E402
from pipeline.physics.losses import loss_of  # noqa: E402
from pipeline.physics.prior import Prior  # noqa: E402
from pipeline.physics.solver import blank_state, canvas_over, prepare, solve, survey_scan  # noqa: E402
from pipeline.stream.scan_stream import ScanStream  # noqa: E402
from tests.physics_scans import make_scan, passes_of  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

QUADRATIC = Prior(name="quadratic", weight=0.03)
SHORT = SolverConfig(iterations=4, start_iterations=2)


@functools.cache
def solved(modes: int = 1):
    """A scan, its optics, and both halves of a split after a short solve."""
    scan = make_scan(noise=True, modes=modes)
    probe = torch.from_numpy(scan.probe)
    survey = survey_scan(passes_of(scan), probe)
    optics = prepare(survey, probe, config=SHORT, geometry=canvas_over(survey, side=32))
    halves = halves_of(0, seed=3, n_frames=160)
    start = blank_halves(passes_of(scan), optics, halves=halves)
    *_, state = solve_halves(passes_of(scan), optics, prior=QUADRATIC, config=SHORT, start=start, halves=halves)
    return scan, optics, halves, state


def network(seed: int = 0, *, zero_last: bool = False) -> UNet:
    net = UNet(inputs=INPUTS, width=4, depth=2)
    initialise(net, seed=seed)
    if not zero_last:
        with torch.no_grad():
            net.last.weight.copy_(torch.linspace(-1, 1, net.last.weight.numel()).reshape(net.last.weight.shape))
    return net


def task_of(net: UNet, *, seed: int = 0) -> CanvasTask:
    scan, optics, halves, state = solved()
    starts = tuple(started(passes_of(scan), optics, state.half(k), config=SHORT, use=halves[k]) for k in range(2))
    return CanvasTask(
        network=net, starts=starts, halves=halves[None], optics=optics, photons_scale=1.0, shift=None, gain=None,
        loss_name="poisson", background=0.01, seed=seed, batch_size=20,
    )  # fmt: skip


@functools.cache
def store() -> Path:
    import tempfile

    return store_of(solved()[0], Path(tempfile.mkdtemp()) / "s.zarr")


def stream(**options) -> ScanStream:
    return ScanStream(store(), StreamConfig(**{"batch_size": 40, "batches": "cluster", "epochs": 50, **options}))


# --- halves


@given(seed=st.integers(0, 99), split=st.integers(0, 3), n=st.integers(2, 300))
def test_halves_share_no_frame_and_leave_none_out(seed: int, split: int, n: int) -> None:
    halves = halves_of(split, seed=seed, n_frames=n)
    assert (halves.sum(0) == 1).all()
    assert abs(int(halves[0].sum()) - int(halves[1].sum())) <= 1


def test_both_halves_in_one_pass_are_the_solves_of_either() -> None:
    scan, optics, halves, state = solved()
    for k in range(2):
        start = blank_state(passes_of(scan), optics, use=halves[k])
        *_, alone = solve(passes_of(scan), optics, prior=QUADRATIC, config=SHORT, start=start, use=halves[k])
        assert torch.equal(state.half(k).canvas, alone.canvas)
        assert torch.equal(state.half(k).den, alone.den)


# --- the loss of frames


@pytest.mark.parametrize("loss", ["poisson", "amplitude"])
@pytest.mark.parametrize("modes", [1, 2])
def test_the_loss_and_its_gradient_are_those_of_the_forward_model(loss, modes) -> None:
    scan, optics, _, state = solved(modes)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[3:5, 20] = False
    bad = torch.fft.ifftshift(~valid)
    optics = replace(
        optics, bad=bad, probe=optics.probe.to(torch.complex128), blank_exit=optics.blank_exit.to(torch.complex128)
    )
    rng = np.random.default_rng(0)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, 30))
    frames = Frames(
        torch.from_numpy(scan.intensity[:30]), torch.from_numpy(scan.positions[:30]), torch.arange(30), gain
    )
    canvas = state.canvas[0].to(torch.complex128).requires_grad_()
    found = frame_loss(canvas, frames, optics, loss=loss, background=0.01, batch_size=7)
    light = expected_intensity(canvas.detach(), frames.positions, optics) * gain[:, None, None]
    wanted = loss_of(loss, frames.intensity, light, background=0.01)[:, valid].mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-9)
    found.backward()
    direction = torch.from_numpy(rng.normal(size=canvas.shape) + 1j * rng.normal(size=canvas.shape))
    step = 1e-5
    ends = [
        float(frame_loss(canvas.detach() + sign * step * direction, frames, optics, loss=loss, background=0.01,
                         batch_size=30))
        for sign in (1, -1)
    ]  # fmt: skip
    slope = float((canvas.grad.conj() * direction).real.sum())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_the_gradient_of_a_whole_step_is_right() -> None:
    """From a weight of the network to the loss of the frames, by finite differences."""
    net = network()
    task = task_of(net)
    batch = next(iter(stream()))
    # bf16 hides small changes, so the step is large and the agreement coarse
    loss = task.loss(batch, 0)
    loss.backward()
    weight = net.last.weight
    gradient = float(weight.grad.flatten()[3])
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[3] += sign * 0.05
            ends.append(float(task.loss(batch, 0).detach()))
            weight.view(-1)[3] -= sign * 0.05
    assert gradient == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.05)


# --- geometry


@given(number=st.integers(0, 7), height=st.integers(1, 6), width=st.integers(1, 6))
def test_a_symmetry_and_back_is_nothing(number: int, height: int, width: int) -> None:
    planes = torch.arange(2.0 * height * width).reshape(2, height, width)
    assert torch.equal(unsymmetric(symmetric(planes, number), number), planes)


def test_the_eight_symmetries_differ() -> None:
    planes = torch.arange(9.0).reshape(1, 3, 3)
    assert len({tuple(symmetric(planes, number).flatten().tolist()) for number in range(8)}) == 8


@given(y=st.floats(0, 200), x=st.floats(0, 200), height=st.integers(10, 60), width=st.integers(10, 60))
def test_a_crop_lies_inside_the_canvas_around_its_frame(y: float, x: float, height: int, width: int) -> None:
    optics = replace(solved()[1], geometry=CanvasGeometry(origin=(-3, 5), shape=(4 * height, 4 * width)))
    shape = (4 * height, 4 * width)
    crop = crop_around(torch.tensor([y, x], dtype=torch.float64), optics, shape=shape)
    for k in range(2):
        low, high = optics.geometry.origin[k], optics.geometry.origin[k] + shape[k]
        assert low <= crop.origin[k]
        assert crop.origin[k] + crop.shape[k] <= high
        assert crop.shape[k] % 4 == 0
        if crop.shape[k] < shape[k] and low + 80 < (y, x)[k] < high - 80:
            assert abs(crop.origin[k] + crop.shape[k] / 2 - (y, x)[k]) <= 1


def test_frames_inside_a_crop_see_nothing_else() -> None:
    scan, optics, _, state = solved()
    crop = CanvasGeometry(origin=(optics.geometry.origin[0] + 4, optics.geometry.origin[1] + 8), shape=(64, 60))
    where = torch.from_numpy(scan.positions)
    rows = inside(where, crop, optics).nonzero()[:, 0]
    assert 0 < len(rows) < len(where)
    canvas = state.canvas[0]
    piece = canvas[4:68, 8:68]
    whole = expected_intensity(canvas, where[rows], optics)
    cut = expected_intensity(piece, where[rows], replace(optics, geometry=crop))
    assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-4)


def test_a_batch_that_gives_no_frame_to_judge_names_the_geometry() -> None:
    task = task_of(network())
    nobody = np.zeros_like(task.halves)
    with pytest.raises(PlanError, match="px inside a crop of"):
        replace(task, halves=nobody).loss(next(iter(stream())), 0)


def test_the_untrained_network_changes_nothing() -> None:
    start = task_of(network(zero_last=True)).starts[0]
    assert torch.equal(improved(network(zero_last=True), start), start.canvas)


def test_tiles_give_what_one_pass_gives() -> None:
    net = network()
    rng = torch.Generator().manual_seed(0)
    canvas = torch.complex(torch.rand(600, 300, generator=rng) * 0.2 + 0.6, torch.rand(600, 300, generator=rng) * 0.2)
    den, gradient = torch.rand(600, 300, generator=rng) + 0.5, canvas * 0.01
    start = start_of(canvas, den, gradient)
    with torch.no_grad():
        whole = sum(correction(net, start.inputs, symmetry=k) for k in range(8)) / 8
    tiled = improved(net, start)
    assert float((tiled - (canvas + whole * start.turn.conj())).abs().max()) < 1e-6


def test_the_global_phase_of_an_estimate_does_not_matter() -> None:
    net, (_, _, _, state) = network(), solved()
    turned = torch.polar(torch.ones(()), torch.tensor(1.3))
    gradient = torch.zeros_like(state.canvas[0])
    one, two = (start_of(state.canvas[0] * t, state.den[0], gradient * t) for t in (torch.ones(()), turned))
    assert torch.allclose(improved(net, one) * turned, improved(net, two), atol=2e-3)


# --- fitting


def run_of(steps: int, *, start=None, total: int = 6):
    net = network(zero_last=True)
    task, config = task_of(net), FitConfig(steps=total, warmup=2)
    batches = stream()
    begin = begin_fit(net) if start is None else start
    batches.load_state_dict({**batches.state_dict(), "epoch": begin.step // 4, "step": begin.step % 4})
    states = []
    for state in fit(task, batches, config, start=begin):
        tensors, numbers = pack_fit(state)
        states.append(({name: t.clone() for name, t in tensors.items()}, numbers, state.loss))
        if state.step == steps:
            break
    return states


def test_any_state_of_a_fit_goes_on_to_the_same_bits() -> None:
    from pipeline.learning.fit import FitState

    whole = run_of(6)
    assert [numbers["step"] for _, numbers, _ in whole] == [1, 2, 3, 4, 5, 6]
    for stopped in (1, 4, 5):
        again = run_of(6, start=unpack_fit(FitState, *whole[stopped - 1][:2]))
        assert [loss for *_, loss in again] == [loss for *_, loss in whole[stopped:]]
        assert all(torch.equal(again[-1][0][name], t) for name, t in whole[-1][0].items())


def test_fitting_makes_the_loss_smaller() -> None:
    net = network(zero_last=True)
    task = task_of(net)
    batches = [batch for batch, _ in zip(stream(seed=9), range(16), strict=False)]

    def mean_loss() -> float:
        with torch.no_grad():
            return float(np.mean([float(task.loss(batch, number)) for number, batch in enumerate(batches)]))

    before = mean_loss()
    for _ in fit(task, stream(), FitConfig(steps=120, warmup=5), start=begin_fit(net)):
        pass
    assert mean_loss() < before


def test_the_rate_rises_then_falls_to_its_last_value() -> None:
    config = FitConfig(steps=100, warmup=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 1e-5


def test_a_loss_that_is_no_number_names_its_step() -> None:
    net = network(zero_last=True)
    task = replace(task_of(net), photons_scale=math.nan)
    with pytest.raises(DivergedError, match="loss of step 0 is nan"):
        list(fit(task, stream(), FitConfig(steps=3), start=begin_fit(net)))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = network(zero_last=True, seed=4).state_dict()
    torch.manual_seed(2)
    same, other = network(zero_last=True, seed=4).state_dict(), network(zero_last=True, seed=5).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["first.weight"], other["first.weight"])
    assert sum(p.numel() for p in UNet(inputs=5, width=24, depth=2).parameters()) == 265_514
