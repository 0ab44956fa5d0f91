"""The classic autoencoder: its shapes, the scale of what it sees, and that frames alone teach it."""

from __future__ import annotations

import functools
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.config import FitConfig, NetworkConfig, StreamConfig  # noqa: E402  # behind the check for torch
from pipeline.errors import ConfigError  # noqa: E402
from pipeline.learning.cnn import Autoencoder, CnnTask, cnn_network, cnn_patches, input_scale  # noqa: E402
from pipeline.learning.fit import begin_fit, fit  # noqa: E402
from pipeline.physics.forward import make_optics  # noqa: E402
from pipeline.physics.gauge import BLANK  # noqa: E402
from pipeline.physics.patches import patch_optics  # noqa: E402
from pipeline.physics.solver import canvas_over, survey_scan  # noqa: E402
from pipeline.stream.scan_stream import ScanStream  # noqa: E402
from tests.physics_scans import make_scan, passes_of  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

SMALL = NetworkConfig(width=4, bfloat16=False)


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)


@functools.cache
def store() -> Path:
    return store_of(make_scan(noise=True), Path(tempfile.mkdtemp()) / "s.zarr")


def stream(gridsize: int, **options) -> ScanStream:
    size = 16 // gridsize**2
    return ScanStream(store(), StreamConfig(batch_size=size, gridsize=gridsize, epochs=50, **options), labels=False)


def task_of(network: Autoencoder, *, valid: torch.Tensor | None = None) -> CnnTask:
    scan = make_scan(noise=True)
    probe = torch.from_numpy(scan.probe)
    survey = survey_scan(passes_of(scan), probe, valid=valid)
    optics = make_optics(probe, gauge=survey.gauge, geometry=canvas_over(survey, side=32), support=16, valid=valid)
    return CnnTask(
        network=network, optics=patch_optics(optics), photons_scale=1.0,
        scale=input_scale(survey.photons_per_frame, side=32), loss_name="poisson", background=0.01,
    )  # fmt: skip


def network_of(gridsize: int = 1, *, seed: int = 0) -> Autoencoder:
    return cnn_network(SMALL, side=32, gridsize=gridsize, seed=seed)


@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_members_are_channels_in_and_out(side: int, gridsize: int) -> None:
    network = cnn_network(SMALL, side=side, gridsize=gridsize, seed=0)
    found = network(torch.rand(2, gridsize**2, side, side))
    assert found.shape == (2, gridsize**2, side // 2, side // 2)
    assert torch.allclose(found, torch.full_like(found, BLANK))


def test_it_is_as_large_as_the_classic_one() -> None:
    network = cnn_network(NetworkConfig(width=64), side=64, gridsize=1, seed=0)
    assert sum(weight.numel() for weight in network.parameters()) == 2_252_098


@pytest.mark.parametrize("side", [48, 62, 96])
def test_other_frames_are_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=f"takes frames of 32, 64, 128, 256 px, and the scan has {side} x {side}"):
        cnn_network(SMALL, side=side, gridsize=1, seed=0)


def test_what_it_sees_has_a_mean_energy_of_a_quarter_of_the_pixels() -> None:
    frames = torch.cat([batch.diffraction for batch in stream(1, batches="sequential")][:10])
    task = task_of(network_of())
    seen = frames * task.scale
    assert float(seen.square().sum((-2, -1)).mean()) == pytest.approx(16**2, rel=0.01)


def test_pixels_without_meaning_say_nothing() -> None:
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[14:18, 16] = False
    network = network_of()
    with torch.no_grad():
        network.amplitude[-1].weight.fill_(0.1)
    task, batch = task_of(network, valid=valid), next(iter(stream(1)))
    spoilt = batch._replace(diffraction=batch.diffraction.masked_fill(~valid, 1e3))
    assert torch.equal(task.loss(batch, 0), task.loss(spoilt, 0))


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_gradient_of_a_step_is_exact(gridsize: int) -> None:
    network = network_of(gridsize).double()
    with torch.no_grad():
        network.phase[-1].weight.fill_(0.02)
    task, batch = task_of(network), next(iter(stream(gridsize)))
    optics = task.optics
    task = replace(
        task,
        optics=replace(
            optics, probe=optics.probe.to(torch.complex128), surround=optics.surround.to(torch.complex128),
            light=optics.light.double(),
        ),
    )  # fmt: skip
    batch = batch._replace(diffraction=batch.diffraction.double())
    task.loss(batch, 0).backward()
    weight = network.phase[-1].bias
    gradient, ends = float(weight.grad[0]), []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0] += sign * 1e-5
            ends.append(float(task.loss(batch, 0)))
            weight[0] -= sign * 1e-5
    assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_fitting_makes_the_loss_of_frames_smaller(gridsize: int) -> None:
    network, batch = network_of(gridsize), next(iter(stream(gridsize)))
    config = FitConfig(steps=30, warmup=1, learning_rate=4e-3)
    states = fit(task_of(network), itertools.repeat(batch), config, start=begin_fit(network))
    losses = [state.loss for state in states]
    assert losses[-1] < 0.95 * losses[0]


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = network_of(seed=4).state_dict()
    torch.manual_seed(2)
    same, other = network_of(seed=4).state_dict(), network_of(seed=5).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.0.weight"], other["encoder.0.weight"])


def test_patches_have_the_shape_of_their_group() -> None:
    task, batch = task_of(network_of(2)), next(iter(stream(2)))
    found = cnn_patches(task.network, batch, task.optics, photons_scale=1.0, scale=task.scale)
    assert found.shape == (*batch.indices.shape, 16, 16)
