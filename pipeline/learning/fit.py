"""The one training loop: batches in, weights out. It knows no model, only a task's loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.config import FitConfig
from pipeline.errors import DivergedError
from pipeline.stream.scan_stream import Batch


class Task(Protocol):
    """What is learned: a network, and its loss on a batch."""

    @property
    def network(self) -> nn.Module:
        """The network whose weights are fitted."""

    def loss(self, batch: Batch, step: int) -> Tensor:
        """A scalar to be made small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitState:
    """What a step leaves behind, enough to go on to the same bits.

    Its tensors are the live ones: they are good until the next step is asked for.

    weights, mean, square : name -> tensor, the parameters and AdamW's running moments. step : steps done.
    loss : of the last step, NaN before the first.
    """

    weights: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    step: int
    loss: float


def begin_fit(network: nn.Module) -> FitState:
    """The state before the first step, of a network as it is."""
    weights = dict(network.named_parameters())
    zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    fresh = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    return FitState(weights=weights, mean=zeros, square=fresh, step=0, loss=math.nan)


def fit(task: Task, batches: Iterable[Batch], config: FitConfig, *, start: FitState) -> Iterator[FitState]:
    """The state after each step, until `config.steps` are done.

    Parameters
    ----------
    batches : those that follow the steps that `start` has behind it.
    start : `begin_fit`, or any state of the same fit, to go on to the same bits.

    Raises
    ------
    DivergedError
        The loss of a step is no finite number.
    """
    weights = dict(task.network.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), betas=(config.beta1, config.beta2), weight_decay=0.0)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(start.weights[name])
            optimiser.state[weight] = {
                "step": torch.tensor(float(start.step)),
                "exp_avg": start.mean[name].clone(),
                "exp_avg_sq": start.square[name].clone(),
            }
    for step, batch in enumerate(batches, start.step):
        if step >= config.steps:
            return
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        optimiser.zero_grad()
        loss = task.loss(batch, step)
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"the loss of step {step} is {float(loss.detach())}",
                code="fit.diverged",
                hint="a smaller --set fit.learning_rate",
            )
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimiser.step()
        yield FitState(
            weights=weights,
            mean={name: optimiser.state[weight]["exp_avg"] for name, weight in weights.items()},
            square={name: optimiser.state[weight]["exp_avg_sq"] for name, weight in weights.items()},
            step=step + 1,
            loss=float(loss.detach()),
        )


def learning_rate(step: int, config: FitConfig) -> float:
    """The rate of a step: a linear warm-up, then half a cosine down to `config.last_rate` at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.last_rate + (config.learning_rate - config.last_rate) * (1 + math.cos(math.pi * done)) / 2


def pack_fit(state: FitState) -> tuple[dict[str, Tensor], dict[str, int]]:
    """A state as the two parts of a checkpoint."""
    parts = {"weights": state.weights, "mean": state.mean, "square": state.square}
    return {f"{part}/{name}": t.detach() for part, named in parts.items() for name, t in named.items()}, {
        "step": state.step
    }


def unpack_fit(kind: type[FitState], tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> FitState:
    """The inverse of `pack_fit`."""
    named: dict[str, dict[str, Tensor]] = {"weights": {}, "mean": {}, "square": {}}
    for path, tensor in tensors.items():
        part, _, name = path.partition("/")
        named[part][name] = tensor
    return kind(**named, step=numbers["step"], loss=math.nan)
