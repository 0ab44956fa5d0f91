"""The model `patch`: what its stages see and say, one frame at a time or in groups, learned from frames alone."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.config import (  # noqa: E402  # torch is there
    FitConfig,
    NetworkConfig,
    PatchConfig,
    SolverConfig,
    StreamConfig,
)
from pipeline.errors import ConfigError, PlanError  # noqa: E402
from pipeline.evaluation.reassembly import placed, reassemble  # noqa: E402
from pipeline.learning.fit import FitState, begin_fit, fit, pack_fit, unpack_fit  # noqa: E402
from pipeline.learning.patch import (  # noqa: E402
    PatchNetwork,
    PatchTask,
    members_of,
    patch_network,
    patch_support,
    patches_of,
    predicted_amplitudes,
    unrolled,
)
from pipeline.physics.forward import expected_intensity  # noqa: E402
from pipeline.physics.groups import plots_of  # noqa: E402
from pipeline.physics.patches import PatchOptics, patch_optics  # noqa: E402
from pipeline.physics.solver import canvas_over, prepare, survey_scan  # noqa: E402
from pipeline.stream.scan_stream import Batch, ScanStream  # noqa: E402
from tests.patched_scans import cut, optics_of, truth_of  # noqa: E402
from tests.physics_scans import make_scan, nrmse, passes_of  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

SMALL = NetworkConfig(width=8, depth=1)
EXACT = NetworkConfig(width=4, depth=1, bfloat16=False)


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)


@functools.cache
def scan_of(modes: int = 1):
    return make_scan(noise=True, modes=modes)


@functools.cache
def store() -> Path:
    return store_of(scan_of(), Path(tempfile.mkdtemp()) / "s.zarr")


@functools.cache
def known(modes: int = 1):
    """The scan's optics in float32, as a training would make them."""
    scan = scan_of(modes)
    probe = torch.from_numpy(scan.probe)
    survey = survey_scan(passes_of(scan), probe)
    return prepare(survey, probe, config=SolverConfig(), geometry=canvas_over(survey, side=32))


def stream(gridsize: int = 1, **options) -> ScanStream:
    size = 16 // gridsize**2
    return ScanStream(
        store(),
        StreamConfig(**{"batch_size": size, "batches": "cluster", "gridsize": gridsize, "epochs": 50, **options}),
        labels=False,
    )


def talkative(network: PatchNetwork) -> PatchNetwork:
    """A network that says something before it is trained."""
    with torch.no_grad():
        for stage in network.stages:
            weight = stage.last.weight
            weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))
    return network


def task_of(network: PatchNetwork, *, gridsize: int = 1, **changes) -> PatchTask:
    return PatchTask(
        network=network, optics=patch_optics(known()), config=PatchConfig(**changes), photons_scale=1.0,
        loss_name="poisson", background=0.01, cluster_size=16 // gridsize**2,
    )  # fmt: skip


def exact_batch(n_groups: int, members: int, *, modes: int = 1, dose: float = 1.0) -> tuple[Batch, PatchOptics]:
    """Neighbouring frames in float64, each group a seed and its nearest."""
    scan = scan_of(modes)
    where = torch.from_numpy(scan.positions)
    nearest = (where[:, None] - where).square().sum(-1).argsort(1)[:n_groups, :members]
    positions = where[nearest]
    offsets = positions.mean(1)
    amplitude = torch.from_numpy(scan.intensity * dose).sqrt()[nearest]
    optics = patch_optics(optics_of(scan, support=24, dose=dose))
    return Batch(amplitude, positions, offsets, positions - offsets[:, None], None, nearest, None, 0, 0), optics


@torch.no_grad()
def made_of(batch: Batch, optics: PatchOptics, network: PatchNetwork) -> torch.Tensor:
    return patches_of(network.double(), batch, optics, photons_scale=1.0, damping=0.1)


# --- what the network says


@pytest.mark.parametrize("gridsize", [1, 2])
def test_an_untrained_network_says_flat_patches_as_bright_as_their_frames(gridsize: int) -> None:
    batch, optics = exact_batch(3, gridsize**2)
    found = made_of(batch, optics, patch_network(EXACT, PatchConfig(), seed=0))
    level = members_of(batch, optics, photons_scale=1.0).level.view(3, -1)
    blur = 0.0 if gridsize == 1 else 0.05  # a stitched group shows each of its levels
    assert float((found - level[..., None, None]).abs().max()) <= blur + 1e-12


def test_its_size_is_that_of_the_recipe() -> None:
    network = patch_network(NetworkConfig(width=24, depth=1), PatchConfig(), seed=0)
    assert sum(weight.numel() for weight in network.parameters()) == 125_284
    assert not torch.equal(network.stages[0].bottom[0].weight, network.stages[1].bottom[0].weight)


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("gridsize", [1, 2])
def test_more_light_changes_no_patch(modes: int, gridsize: int) -> None:
    """Counts times d with a probe times sqrt(d)."""
    network = talkative(patch_network(EXACT, PatchConfig(), seed=0))
    one, other = (made_of(*exact_batch(3, gridsize**2, modes=modes, dose=d), network) for d in (1.0, 5.0))
    assert float((one - one.mean()).abs().max()) > 0.01
    assert torch.allclose(one, other, rtol=1e-8)


def test_members_may_come_in_any_order() -> None:
    batch, optics = exact_batch(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    other = batch._replace(
        diffraction=batch.diffraction[:, order], positions=batch.positions[:, order],
        relative=batch.relative[:, order], indices=batch.indices[:, order],
    )  # fmt: skip
    network = talkative(patch_network(EXACT, PatchConfig(), seed=0))
    assert torch.allclose(made_of(batch, optics, network)[:, order], made_of(other, optics, network), rtol=1e-9)


def test_a_member_hears_of_its_group_and_of_nobody_else() -> None:
    batch, optics = exact_batch(3, 4)
    network = talkative(patch_network(EXACT, PatchConfig(), seed=0))
    louder = batch._replace(diffraction=batch.diffraction.clone())
    louder.diffraction[1, 2] *= 1.3
    one, other = made_of(batch, optics, network), made_of(louder, optics, network)
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert all(not torch.allclose(one[1, member], other[1, member]) for member in range(4))


def test_relative_positions_of_the_stream_lead_from_the_mean_to_the_member() -> None:
    """A group is stitched at offset + relative: relative is position - mean, not mirrored."""
    batch = next(iter(stream(2)))
    assert torch.allclose(batch.offsets[:, None] + batch.relative, batch.positions, rtol=1e-15)
    optics, network = patch_optics(known()), talkative(patch_network(EXACT, PatchConfig(), seed=0))
    found = patches_of(network, batch, optics, photons_scale=1.0, damping=0.1)
    again = batch._replace(positions=batch.offsets[:, None] + batch.relative)
    mirrored = batch._replace(positions=batch.offsets[:, None] - batch.relative)
    assert torch.allclose(found, patches_of(network, again, optics, photons_scale=1.0, damping=0.1), atol=1e-5)
    assert not torch.allclose(found, patches_of(network, mirrored, optics, photons_scale=1.0, damping=0.1), atol=1e-2)


@pytest.mark.parametrize(("side", "modes"), [(64, 1), (128, 2)])
@pytest.mark.parametrize("gridsize", [1, 2])
def test_frames_of_64_and_128_pixels_are_taken(side: int, modes: int, gridsize: int) -> None:
    scan = make_scan(noise=True, n_frames=4, n=side, side=2 * side, modes=modes)
    where, n = torch.from_numpy(scan.positions), gridsize**2
    positions = where[:n][None]
    batch = Batch(
        torch.from_numpy(scan.intensity).sqrt().float()[:n][None], positions, positions.mean(1),
        positions - positions.mean(1, keepdim=True), None, torch.arange(n)[None], None, 0, 0,
    )  # fmt: skip
    probe = torch.from_numpy(scan.probe)
    support = patch_support(probe, SMALL, PatchConfig())
    survey = survey_scan(passes_of(scan), probe)
    full = prepare(survey, probe, config=SolverConfig(), geometry=canvas_over(survey, side=side))
    network = patch_network(SMALL, PatchConfig(), seed=0)
    found = patches_of(network, batch, patch_optics(full), photons_scale=1.0, damping=0.1)
    assert found.shape == (1, n, support, support)
    assert found.dtype == torch.complex64


def test_the_support_is_what_the_network_can_take() -> None:
    probe = torch.from_numpy(scan_of().probe)
    for depth in (1, 2, 3):
        support = patch_support(probe, NetworkConfig(depth=depth), PatchConfig())
        assert support % 2**depth == 0
        assert 16 <= support <= 32
    wide = torch.ones(1, 36, 36, dtype=torch.complex64)
    with pytest.raises(ConfigError, match="40 would be needed"):
        patch_support(wide, NetworkConfig(depth=3), PatchConfig())


@pytest.mark.parametrize("gridsize", [1, 2])
def test_perfect_patches_predict_their_frames(gridsize: int) -> None:
    """To 0.22 % of the amplitudes, what is not flat outside the support; to 0.62 % where stitching blurs a group."""
    batch, optics = exact_batch(3, gridsize**2)
    scan = scan_of()
    full = optics_of(scan, support=24)
    patches = cut(truth_of(scan, full), batch.positions.reshape(-1, 2), support=24).view(3, -1, 24, 24)
    measured = expected_intensity(truth_of(scan, full), batch.positions.reshape(-1, 2), full).sqrt()
    found = predicted_amplitudes(patches, batch, optics, photons_scale=1.0).flatten(0, 1)
    error = float((found - measured).norm() / measured.norm())
    assert error < {1: 0.0025, 2: 0.007}[gridsize]


# --- what it learns


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_gradient_of_a_whole_step_is_exact(gridsize: int) -> None:
    """From a weight of the first stage through both to the loss of the frames, by finite differences."""
    batch, optics = exact_batch(16 // gridsize**2, gridsize**2)
    network = talkative(patch_network(EXACT, PatchConfig(), seed=0)).double()
    task = replace(task_of(network, gridsize=gridsize), optics=optics)
    task.loss(batch, 0).backward()
    weight = network.stages[0].last.weight
    gradient, ends = float(weight.grad.flatten()[3]), []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[3] += sign * 1e-5
            ends.append(float(task.loss(batch, 0)))
            weight.view(-1)[3] -= sign * 1e-5
    assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_no_frame_judges_a_patch_that_has_seen_it(gridsize: int) -> None:
    """A group alone in its cluster has nobody to judge it, unless its own frames may."""
    batch, optics = exact_batch(1, gridsize**2)
    network = patch_network(EXACT, PatchConfig(), seed=0).double()
    with pytest.raises(PlanError, match="none has a neighbour in it"):
        replace(task_of(network), optics=optics, cluster_size=1).loss(batch, 0)
    task = replace(task_of(network, leave_out_own=False), optics=optics, cluster_size=1)
    task.loss(batch, 0).backward()
    assert float(network.stages[1].last.bias.grad.abs().sum()) > 0


@pytest.mark.parametrize("gridsize", [1, 2])
def test_training_on_frames_alone_finds_the_object(gridsize: int) -> None:
    """The object that its patches make comes nearer to the truth; amplitudes tell no phase here."""
    network = patch_network(SMALL, PatchConfig(), seed=0)
    task = task_of(network, gridsize=gridsize)

    @torch.no_grad()
    def error() -> float:
        say = functools.partial(patches_of, network, optics=task.optics, photons_scale=1.0, damping=0.1)
        pieces = placed(stream(gridsize, batches="sequential", epochs=1), say)
        full = known()
        made = reassemble(pieces, task.optics.light, geometry=full.geometry, level=0.7).object.numpy()
        y, x = full.geometry.origin
        truth = scan_of().truth[y : y + made.shape[0], x : x + made.shape[1]]
        return nrmse(made, truth)

    before = error()
    config = FitConfig(steps=80, warmup=5, learning_rate=4e-3)
    for _ in fit(task, stream(gridsize), config, start=begin_fit(network)):
        pass
    assert error() < 0.9 * before


def run_of(steps: int, *, gridsize: int, start: FitState | None = None):
    network = patch_network(SMALL, PatchConfig(), seed=0)
    batches = stream(gridsize)
    begin = begin_fit(network) if start is None else start
    batches.load_state_dict({**batches.state_dict(), "step": begin.step})
    states = []
    task = task_of(network, gridsize=gridsize)
    for state in fit(task, batches, FitConfig(steps=4, warmup=2), start=begin):
        tensors, numbers = pack_fit(state)
        states.append(({name: t.clone() for name, t in tensors.items()}, numbers, state.loss))
        if state.step == steps:
            break
    return states


@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_fit_that_is_gone_on_with_has_the_same_bits(gridsize: int) -> None:
    whole = run_of(4, gridsize=gridsize)
    again = run_of(4, gridsize=gridsize, start=unpack_fit(FitState, *whole[1][:2]))
    assert [loss for *_, loss in again] == [loss for *_, loss in whole[2:]]
    assert all(torch.equal(again[-1][0][name], t) for name, t in whole[-1][0].items())


def test_a_batch_of_several_clusters_is_their_mean() -> None:
    batch = next(iter(stream(batch_size=32, cluster_size=16)))
    task = task_of(talkative(patch_network(EXACT, PatchConfig(), seed=0)))
    halves = [
        batch._replace(**{name: getattr(batch, name)[rows] for name in ("diffraction", "positions", "indices")})
        for rows in (slice(0, 16), slice(16, 32))
    ]
    mean = np.mean([float(task.loss(half, 0).detach()) for half in halves])
    assert float(task.loss(batch, 0).detach()) == pytest.approx(mean, rel=1e-5)


def test_an_intermediate_stage_is_as_long_as_the_last() -> None:
    batch, optics = exact_batch(4, 1)
    network = talkative(patch_network(EXACT, PatchConfig(stages=3), seed=0)).double()
    members, plots = members_of(batch, optics, photons_scale=1.0), plots_of(batch.positions, optics, cluster_size=1)
    stages = unrolled(network, members, optics, plots, damping=0.1)
    assert len(stages) == 3
    assert all(stage.shape == (4, 24, 24) for stage in stages)
