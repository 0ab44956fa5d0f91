"""Settings of a network drawn at random, each trained for equal CPU-seconds on lines and scored on the other object.

    python -m benchmarks.tuning --data FOLDER --model cnn:1 [--trials 24] [--cpu-s 60] [--seed 0]

FOLDER holds lines_ci_n1e5_{train,test}.npz. The number of steps follows from a short run of the same settings. Complex
NRMSE of the object of the test scan, rows and columns [43:211], raw; one thread; the best come first at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.models import KNOWN, MODELS, make_pair
from benchmarks.solver import table
from benchmarks.training import SCORED, trained, used

SPACES: Final[Mapping[str, Mapping[str, Sequence[Any]]]] = {
    "cnn": {
        "network.width": (16, 24, 32, 48, 64),
        "fit.learning_rate": (5e-4, 1e-3, 2e-3, 4e-3),
        "fit.warmup": (0, 50),
        "frames": (8, 16, 32, 64),
        "stream.batches": ("shuffled", "cluster"),
    },
    "patch": {
        "fit.learning_rate": (1e-3, 2e-3, 4e-3),
        "frames": (16, 32, 64, 128),
        "network.width": (16, 24, 32),
        "patch.earlier_weight": (0.05, 0.3),
    },
}
"""Model -> what may be drawn for each key; `frames` of a step, a batch of frames / gridsize^2 groups."""

_CALIBRATION: Final = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Settings, the steps that the CPU-seconds allowed, and the error of the other object."""

    settings: Mapping[str, Any]
    steps: int
    cpu_s: float
    error: float


def drawn(model: str, *, trials: int, seed: int) -> list[dict[str, Any]]:
    """Different settings of a model, "name:gridsize", in the order in which they are tried."""
    name, _, gridsize = model.partition(":")
    space = SPACES[name]
    rng = np.random.default_rng(seed)
    found = list[dict[str, Any]]()
    for _ in range(100 * trials):
        if len(found) == trials:
            break
        one = {key: values[rng.integers(len(values))] for key, values in space.items()}
        one["stream.batch_size"] = max(one.pop("frames") // int(gridsize) ** 2, 1)
        if one not in found:
            found.append(one)
    return found


def tried(
    pair: tuple[Path, Path], model: str, folder: Path, *, settings: Mapping[str, Any], cpu_s: float,
    scored: tuple[int, int] = SCORED,
) -> Trial:  # fmt: skip
    """Train with these settings as long as the CPU-seconds last, and use the network on the other scan."""
    name, _, gridsize = model.partition(":")
    folder.mkdir()
    asked = {**KNOWN, **settings, "model": name, "stream.gridsize": int(gridsize), "seed": 0}
    short = trained(pair[0], folder / "short", {**asked, "fit.steps": _CALIBRATION})[1]["fit"]
    steps = max(int(cpu_s / short * _CALIBRATION), 1)
    bundle, spent = trained(pair[0], folder / "train", {**asked, "fit.steps": steps})
    row = used(model, bundle, pair[1], folder / "use", {**KNOWN, "seed": 0}, scored=scored, cpu_s=spent)
    return Trial(settings=settings, steps=steps, cpu_s=spent["fit"], error=row.network)


def trials_table(trials: Sequence[Trial]) -> str:
    """The best first."""
    ranked = sorted(trials, key=lambda trial: trial.error)
    keys = list(ranked[0].settings)
    cells = [
        [f"{one.error:.4f}", *(str(one.settings[key]) for key in keys), str(one.steps), f"{one.cpu_s:.0f}"]
        for one in ranked
    ]
    return table(["complex NRMSE", *keys, "steps", "CPU-s"], cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each trial as it ends, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two NPZ files")
    parser.add_argument("--model", choices=[name for name in MODELS if name.partition(":")[0] in SPACES], required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--cpu-s", type=float, default=60.0, help="of the fit of each trial")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; every training has seed 0")
    options = parser.parse_args(argv)
    trials = list[Trial]()
    with tempfile.TemporaryDirectory() as name:
        pair = make_pair("lines", options.data, Path(name))
        for number, settings in enumerate(drawn(options.model, trials=options.trials, seed=options.seed)):
            work = Path(name) / f"trial-{number}"
            one = tried(pair, options.model, work, settings=settings, cpu_s=options.cpu_s)
            trials.append(one)
            print(f"# {one.error:.4f} after {one.steps} steps, {one.cpu_s:.0f} CPU-s: {dict(settings)}", flush=True)
    print(trials_table(trials))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
