"""Every model on objects that nobody tuned on, beside the solver, the flat object and patches of the truth.

    python -m benchmarks.models --data FOLDER [--models patch:1 cnn:2] [--cases lines grf] [--seeds 0] [--set KEY=VALUE]

FOLDER holds lines_ci_n1e5_{train,test}.npz; the other cases are simulated: lines, dead leaves and Gaussian fields whose
phase does not follow their amplitude, and `mix` at 1e3, 1e4 and 1e9 photons a frame. A network is trained on one object
and used on another. One thread; complex NRMSE in rows and columns [43:211], raw and with the patches' phases aligned.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.solver import optics_of, table
from benchmarks.training import SCORED, trained, used
from pipeline.config import training_defaults
from pipeline.evaluation.metrics import complex_nrmse
from pipeline.evaluation.reassembly import Placed, reassemble
from pipeline.learning.patch import patch_support
from pipeline.physics.forward import CanvasGeometry, extract, pad_canvas, windows_at
from pipeline.physics.gauge import BLANK
from pipeline.physics.passes import ScanPasses, open_scene
from pipeline.scan.chunks import read_all
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.settings import parse_setting
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

CASES: Final[Mapping[str, tuple[str, float | None]]] = {
    "lines": ("lines", None),
    "lines-independent": ("lines-independent", None),
    "dead-leaves": ("dead-leaves", None),
    "grf": ("grf", None),
    "mix 1e3": ("mix", 1e3),
    "mix 1e4": ("mix", 1e4),
    "mix 1e5": ("mix", 1e5),
    "mix 1e9": ("mix", 1e9),
}
"""Title -> recipe and photons per frame; lines are the files."""

MODELS: Final = ("canvas:1", "patch:1", "patch:2", "cnn:1", "cnn:2")
KNOWN: Final = {"prior.name": "quadratic", "prior.weight": 0.03, "refine.what": "none"}
"""The solve beside patches, with nothing to choose; canvas chooses its own prior."""

_ITERATIONS: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A model on a case: complex NRMSE raw, aligned (None where there is nothing to align), of the solver; CPU-s."""

    case: str
    model: str
    seed: int
    raw: float
    aligned: float | None
    solver: float
    cpu_s: float


def make_pair(case: str, data: Path, folder: Path) -> tuple[Path, Path]:
    """The scan to train on, and that of another object."""
    recipe, photons = CASES[case]
    pair = folder / f"{case}-train.zarr", folder / f"{case}-test.zarr"
    for part, store in zip(("train", "test"), pair, strict=True):
        if case == "lines":
            ingest(plan_ingest(data / f"lines_ci_n1e5_{part}.npz", Declaration()), store)
        else:
            named = recipe_named(recipe if part == "train" else f"{recipe}-test")
            write_store(plan_simulation(named, seed=0, photons_per_frame=photons), store)
    return pair


def bounds(store: Path, *, scored: tuple[int, int] = SCORED) -> tuple[float, float]:
    """What a flat object and patches of the truth, put together, have as error."""
    scene, there = open_scene(store), (slice(*scored), slice(*scored))
    truth = read_all(scene.record, "object")
    config = training_defaults("patch")
    with ScanPasses(scene, batch_pixels=1 << 20, n_modes=len(scene.probe)) as passes:
        optics = optics_of(scene, passes, config.solver)
    side = patch_support(optics.probe, config.network, config.patch)
    first = (optics.probe.shape[-1] - side) // 2
    inside = slice(first, first + side)
    light = optics.probe[:, inside, inside].abs().square().sum(0) / optics.peak
    geometry = CanvasGeometry(origin=(0, 0), shape=(truth.shape[0], truth.shape[1]))
    padded = pad_canvas(optics.gauge.object_to_solver(torch.from_numpy(truth)), outside=BLANK)
    positions = torch.from_numpy(scene.positions)
    windows = windows_at(positions, geometry=geometry, support=side, dtype=light.dtype)
    made = reassemble([Placed(extract(padded, windows), positions)], light, geometry=geometry, level=BLANK)
    flat = np.ones_like(truth)
    return complex_nrmse(flat[there], truth[there]), complex_nrmse(made.object.numpy()[there], truth[there])


def measure(
    case: str, pair: tuple[Path, Path], model: str, folder: Path, *, seed: int, settings: Mapping[str, Any],
    scored: tuple[int, int] = SCORED,
) -> Row:  # fmt: skip
    """Train a model, "name:gridsize", on the first scan and use it on the second."""
    name, _, gridsize = model.partition(":")
    shared = {} if name == "canvas" else KNOWN
    solving = {**shared, **{key: value for key, value in settings.items() if key.startswith("solver.")}, "seed": seed}
    asked = {**shared, **settings, "model": name, "stream.gridsize": int(gridsize), "seed": seed}
    folder.mkdir()
    bundle, cpu_s = trained(pair[0], folder / "train", asked)
    raw = used(case, bundle, pair[1], folder / "raw", solving, scored=scored, cpu_s=cpu_s)
    aligned = None
    if name != "canvas":
        turned = {**solving, "align_phases": _ITERATIONS}
        aligned = used(case, bundle, pair[1], folder / "aligned", turned, scored=scored, cpu_s=cpu_s).network
    return Row(
        case=case, model=model, seed=seed, raw=raw.network, aligned=aligned, solver=raw.solver,
        cpu_s=sum(cpu_s.values()) if name == "canvas" else cpu_s["fit"],
    )  # fmt: skip


def rows_table(rows: Sequence[Row], limits: Mapping[str, tuple[float, float]]) -> str:
    """A line for each; CPU-seconds are of the whole training for canvas, of the fit for the others."""
    cells = [
        [
            row.case, row.model, str(row.seed), f"{row.raw:.4f}", "" if row.aligned is None else f"{row.aligned:.4f}",
            f"{row.solver:.4f}", f"{limits[row.case][1]:.4f}", f"{limits[row.case][0]:.4f}", f"{row.cpu_s:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["case", "model:gridsize", "seed", "raw", "aligned", "solver", "true patches", "flat object", "CPU-s"]
    return table(head, cells)


def all_rows(
    data: Path, folder: Path, *, cases: Sequence[str], models: Sequence[str], seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Iterator[tuple[Row, tuple[float, float]]]:  # fmt: skip
    """Every model on every case, with the bounds of the case."""
    for case in cases:
        pair = make_pair(case, data, folder)
        limits = bounds(pair[1])
        for model in models:
            for seed in seeds:
                work = folder / f"{case}-{model}-{seed}".replace(":", "-")
                yield measure(case, pair, model, work, seed=seed, settings=settings), limits


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; each row as it is found on the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two NPZ files")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of the training")
    options = parser.parse_args(argv)
    rows, limits = list[Row](), dict[str, tuple[float, float]]()
    with tempfile.TemporaryDirectory() as name:
        for row, found in all_rows(
            options.data, Path(name), cases=options.cases, models=options.models, seeds=options.seeds,
            settings=dict(map(parse_setting, options.sets)),
        ):  # fmt: skip
            rows, limits = [*rows, row], {**limits, row.case: found}
            print(f"# {row.case} {row.model} seed {row.seed}: {row.raw:.5f}, solver {row.solver:.5f}", flush=True)
    print(rows_table(rows, limits))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
