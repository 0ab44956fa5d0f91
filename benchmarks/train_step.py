"""What a training step costs: each model against a plain PyTorch autoencoder with its frames in memory.

    python -m benchmarks.train_step [--frames 2000] [--recipe mix] [--steps 20]

One thread, one process, one run: CPU-seconds of a step and of an epoch (every frame once), frames per CPU-second, and
the ratio to the plain one. Reading from the store is charged to ours; the plain one has its tensors ready. The plain
one is the classic network and loss as a first draft would have them: NCHW float32, `fftshift`, `TensorDataset`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.solver import table
from pipeline.config import PriorConfig, RefineConfig, SolverConfig, TrainConfig, training_defaults
from pipeline.learning.allocator import keep_memory
from pipeline.learning.canvas import CanvasTask
from pipeline.learning.determinism import make_deterministic
from pipeline.learning.estimate import Estimate, estimate
from pipeline.learning.fit import begin_fit, fit
from pipeline.learning.grouped import GroupTask, group_task
from pipeline.learning.journal import Journal
from pipeline.learning.prepare import canvas_task, fit_batches, fit_stream
from pipeline.physics.passes import Scene, open_scene
from pipeline.scan.chunks import read_all
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

CASES: Final = (("canvas", 1), ("patch", 1), ("patch", 2), ("cnn", 1), ("cnn", 2))
PLAIN: Final = "plain PyTorch, gridsize 1"
_WARM: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """CPU-seconds of a step that reads `frames` frames, and the number of parameters."""

    name: str
    frames: int
    cpu_s: float
    parameters: int


class Plain(nn.Module):
    """The classic autoencoder, written down without a thought of speed."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        channels, down = 1, []
        depth = (side // 8).bit_length() - 1
        for level in range(depth):
            out = width * 4 // 2 ** (depth - 1 - level)
            down += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()]
            down.append(nn.MaxPool2d(2))
            channels = out
        self.encoder = nn.Sequential(*down)
        self.amplitude, self.phase = (self._decoder(channels, depth - 1, width) for _ in range(2))

    @staticmethod
    def _decoder(channels: int, depth: int, width: int) -> nn.Sequential:
        up: list[nn.Module] = []
        for level in reversed(range(depth)):
            out = width * 2**level
            up += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()]
            up.append(nn.Upsample(scale_factor=2))
            channels = out
        return nn.Sequential(*up, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, amplitude: Tensor) -> Tensor:
        """(B, 1, N, N) -> (B, N, N) complex, zero outside the central half."""
        code = self.encoder(amplitude)
        modulus, phase = torch.sigmoid(self.amplitude(code)), torch.pi * torch.tanh(self.phase(code))
        quarter = amplitude.shape[-1] // 4
        return nn.functional.pad(torch.polar(modulus, phase)[:, 0], (quarter,) * 4)


def plain_steps(amplitude: Tensor, probe: Tensor, *, width: int) -> tuple[Iterator[int], int, int]:
    """Steps of the plain training, endless; frames in one, and parameters. Amplitudes (frame, N, N), sqrt(photon)."""
    network, batch = Plain(amplitude.shape[-1], width), 16
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    scale = amplitude.shape[-1] / 2 / amplitude.square().sum((1, 2)).mean().sqrt()
    loader = DataLoader(TensorDataset(amplitude[:, None]), batch_size=batch, shuffle=True, drop_last=True)

    def steps() -> Iterator[int]:
        while True:
            for (frames,) in loader:
                optimiser.zero_grad()
                waves = probe * network(frames * scale)[:, None]
                fields = torch.fft.fftshift(torch.fft.fft2(waves, norm="ortho"), dim=(-2, -1))
                light = fields.abs().square().sum(1) + 1e-3
                counts = frames[:, 0].square()
                (light - counts * light.log()).mean().backward()
                optimiser.step()
                yield batch

    return steps(), batch, sum(weight.numel() for weight in network.parameters())


def step_cost(name: str, steps: Iterable[object], *, frames: int, parameters: int, n: int) -> Cost:
    """Mean CPU-seconds of `n` steps, behind a few that warm up."""
    running = iter(steps)
    for _ in islice(running, _WARM):
        pass
    begun = time.process_time()
    done = sum(1 for _ in islice(running, n))
    assert done == n
    return Cost(name=name, frames=frames, cpu_s=(time.process_time() - begun) / n, parameters=parameters)


def quick(config: TrainConfig) -> TrainConfig:
    """The same training on an estimate that is not worth waiting for."""
    return replace(
        config,
        prior=PriorConfig(name="quadratic", weight=0.03, choice_iterations=1),
        solver=SolverConfig(iterations=1),
        refine=RefineConfig(what="none"),
    )


def model_cost(scene: Scene, found: Estimate, journal: Journal, model: str, gridsize: int, *, n: int) -> Cost:
    """A step of one of our models, its frames read from the store."""
    config = quick(training_defaults(model, gridsize=gridsize))
    stream, fit_config = fit_stream(scene.record.path, config)
    fit_config = replace(fit_config, steps=n + _WARM + 1)
    task: CanvasTask | GroupTask
    if model == "canvas":
        task = canvas_task(scene, found, config, journal)
    else:
        task = group_task(scene, found, config, cluster_size=stream.order.cluster_size)
    batches = fit_batches(stream, step=0, num_workers=0)
    states = fit(task, batches, fit_config, start=begin_fit(task.network))
    cost = step_cost(
        f"{model}, gridsize {gridsize}", states, frames=stream.order.batch_size * gridsize**2,
        parameters=sum(weight.numel() for weight in task.network.parameters()), n=n,
    )  # fmt: skip
    batches.close()
    return cost


def measure(store: Path, folder: Path, *, n: int, cases: Sequence[tuple[str, int]] = CASES) -> list[Cost]:
    """The plain training first, then ours."""
    scene = open_scene(store)
    amplitude = torch.from_numpy(read_all(scene.record, "diffraction").astype("float32")).sqrt_()
    width = training_defaults("cnn").network.width
    steps, frames, parameters = plain_steps(amplitude, scene.probe, width=width)
    costs = [step_cost(PLAIN, steps, frames=frames, parameters=parameters, n=n)]
    journal = Journal(folder / "states", identity={}, tell=lambda name, passes: lambda done: None)
    found = estimate(scene, quick(TrainConfig()).solving, journal)
    return costs + [model_cost(scene, found, journal, model, gridsize, n=n) for model, gridsize in cases]


def costs_table(costs: Sequence[Cost], *, n_frames: int) -> str:
    """A row for each; the ratio of frames per CPU-second to the plain one's is above 1 where ours is quicker."""
    plain = costs[0].frames / costs[0].cpu_s
    rows = [
        [
            cost.name, f"{cost.parameters:,}", str(cost.frames), f"{cost.cpu_s:.3f}", f"{cost.frames / cost.cpu_s:.0f}",
            f"{n_frames / cost.frames * cost.cpu_s:.1f}", f"{cost.frames / cost.cpu_s / plain:.2f}",
        ]
        for cost in costs
    ]  # fmt: skip
    head = ["training", "parameters", "frames a step", "CPU-s a step", "frames per CPU-s", "CPU-s an epoch", "ratio"]
    return table(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--recipe", default="mix", help="what is simulated; star has frames of 128 px")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(argv)
    make_deterministic(threads=1)
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = replace(recipe_named(options.recipe), n_frames=options.frames)
        write_store(plan_simulation(recipe, seed=0), folder / "scan.zarr")
        print(costs_table(measure(folder / "scan.zarr", folder, n=options.steps), n_frames=options.frames))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
