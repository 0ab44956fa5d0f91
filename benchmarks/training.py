"""The model `canvas` as measured: trained on one scan, used on the scan of another object, solver and network beside.

    python -m benchmarks.training --data FOLDER [--seeds 0 1 2] [--only lines mix]

FOLDER holds lines_ci_n1e5_{train,test}.npz. One thread; errors are complex NRMSE in rows and columns [43:211] of the
object of the test scan. The last row is a network used on another kind of object than it was trained on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import xarray as xr

from benchmarks.solver import table
from pipeline.config import ReconstructConfig, TrainConfig
from pipeline.evaluation.folder import begin_run
from pipeline.evaluation.metrics import complex_nrmse
from pipeline.evaluation.run import (
    about_bundle,
    check_reconstruction,
    check_training,
    run_reconstruction,
    run_training,
)
from pipeline.scan.declaration import Declaration
from pipeline.settings import resolve_config
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

SCORED: Final = (43, 211)
TITLES: Final = ("lines", "mix", "lines-independent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A network used on a scan: complex NRMSE and held-out loss of solver and network, CPU-seconds of its training."""

    title: str
    seed: int
    solver: float
    network: float
    loss_solver: float
    loss_network: float
    warned: bool
    cpu_s: Mapping[str, float]


def quiet(name: str, passes: int) -> Any:
    """Progress that nobody looks at."""
    return lambda done: None


def trained(store: Path, output: Path, settings: Mapping[str, Any]) -> tuple[Path, Mapping[str, float]]:
    """The bundle of a training, and the CPU-seconds of each kind of phase."""
    config = resolve_config(TrainConfig, settings=settings)
    run = begin_run(
        store, output, config, kind="train", said=Declaration(), catalog=None, command=["benchmark"],
        check=lambda record: check_training(record, config),
    )  # fmt: skip
    found = run_training(run, tell=quiet)
    cpu_s: dict[str, float] = {}
    for phase in json.loads((output / "report.json").read_text())["phases"]:
        kind = phase["name"].split()[0]
        cpu_s[kind] = cpu_s.get(kind, 0.0) + phase["cpu_s"]
    return Path(found["bundle_path"]), cpu_s


def used(
    title: str, bundle: Path, store: Path, output: Path, settings: Mapping[str, Any], *, scored: tuple[int, int],
    cpu_s: Mapping[str, float],
) -> Row:  # fmt: skip
    """What a network and the solver alone make of a scan."""
    config = resolve_config(ReconstructConfig, settings=settings)
    run = begin_run(
        store, output, config, kind="reconstruct", said=Declaration(), catalog=None, command=["benchmark"],
        check=lambda record: check_reconstruction(record, config, bundle=bundle), about=about_bundle(bundle),
    )  # fmt: skip
    found = run_reconstruction(run, tell=quiet)
    truth = xr.open_zarr(run.store).object.values
    with xr.open_zarr(output / "reconstruction.zarr") as made:
        here = tuple(slice(scored[0] - first, scored[1] - first) for first in made.attrs["origin_px"])
        there = slice(*scored), slice(*scored)
        errors = [complex_nrmse(made[name].values[here], truth[there]) for name in ("object_solver", "object")]
    return Row(
        title=title, seed=config.seed, solver=errors[0], network=errors[1], loss_solver=found["nll_solver"],
        loss_network=found["nll_network"], cpu_s=cpu_s,
        warned=any("worse than the solver" in one for one in found["warnings"]),
    )  # fmt: skip


def measure(
    stores: Mapping[str, tuple[Path, Path]], folder: Path, *, seeds: Sequence[int], scored: tuple[int, int] = SCORED,
    settings: Mapping[str, Any] | None = None,
) -> Iterable[Row]:  # fmt: skip
    """A row for each scan and seed; then the first network on the test scan of every later title.

    Parameters
    ----------
    stores : title -> (scan to train on, scan of another object).
    settings : dotted keys of both configurations' common part, or of the training's own.
    """
    first: Path | None = None
    given = dict(settings or {})
    solving = {key: value for key, value in given.items() if key.partition(".")[0] in ("solver", "prior", "refine")}
    for title, (train, test) in stores.items():
        for seed in seeds:
            work = folder / f"{title}-{seed}"
            work.mkdir()
            bundle, cpu_s = trained(train, work / "train", {**given, "seed": seed})
            first = first or bundle
            yield used(title, bundle, test, work / "use", {**solving, "seed": seed}, scored=scored, cpu_s=cpu_s)
    assert first is not None
    name = next(iter(stores))
    for title, (_, test) in list(stores.items())[1:]:
        across = folder / f"across-{title}"
        yield used(
            f"{name}, used on {title}", first, test, across, {**solving, "seed": seeds[0]}, scored=scored, cpu_s={}
        )  # fmt: skip


def tables(rows: Sequence[Row]) -> str:
    """Every row; then medians over seeds, with CPU-seconds of the training's phases."""
    each = [
        [
            row.title, str(row.seed), f"{row.solver:.4f}", f"{row.network:.4f}", f"{row.network / row.solver:.3f}",
            f"{row.loss_solver:.4f} -> {row.loss_network:.4f}", "yes" if row.warned else "no",
        ]
        for row in rows
    ]  # fmt: skip
    own = [row for row in rows if row.cpu_s]
    kinds = list(dict.fromkeys(kind for row in own for kind in row.cpu_s))
    medians = []
    for title in dict.fromkeys(row.title for row in own):
        here = [row for row in own if row.title == title]
        spent = (f"{median(row.cpu_s.get(kind, 0.0) for row in here):.1f}" for kind in kinds)
        solver, network, ratio = (
            median(values)
            for values in zip(*((row.solver, row.network, row.network / row.solver) for row in here), strict=True)
        )
        medians.append([title, str(len(here)), f"{solver:.4f}", f"{network:.4f}", f"{ratio:.3f}", *spent])
    head = ["scans", "seed", "solver", "network", "ratio", "held-out loss, solver -> network", "warned"]
    below = ["medians", "seeds", "solver", "network", "ratio", *(f"{kind}, CPU-s" for kind in kinds)]
    return f"{table(head, each)}\n\n{table(below, medians)}"


def make_stores(data: Path, folder: Path) -> Mapping[str, tuple[Path, Path]]:
    """The three pairs of scans."""
    from pipeline.scan.ingest import ingest, plan_ingest

    files = [data / f"lines_ci_n1e5_{part}.npz" for part in ("train", "test")]
    pairs: dict[str, tuple[Path, Path]] = {}
    for title in TITLES:
        made = (folder / f"{title}-train.zarr", folder / f"{title}-test.zarr")
        for part, (file, store) in enumerate(zip(files, made, strict=True)):
            if title == "lines":
                ingest(plan_ingest(file, Declaration()), store)
            else:
                recipe = recipe_named(f"{title}-test" if part else title)
                write_store(plan_simulation(recipe, seed=0, like=file if title == "mix" else None), store)
        pairs[title] = made
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; each row as it is found on the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two NPZ files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=TITLES, default=TITLES)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {title: pair for title, pair in make_stores(options.data, folder).items() if title in options.only}
        rows = []
        for row in measure(stores, folder, seeds=options.seeds):
            rows.append(row)
            print(f"# {row.title} seed {row.seed}: {row.solver:.5f} -> {row.network:.5f}", flush=True)
        print(tables(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
