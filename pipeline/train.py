"""`python -m pipeline.train SOURCE --output RUN`: a scan's frames to a network and the bundle that proves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli import Outcome, Telling, as_typed, command, refuse_with_resume
from pipeline.config import TrainConfig
from pipeline.sampling.options import NAMES, given_sampling, refuse_idle, sampling_flags, sampling_options
from pipeline.scan.options import declaration_options
from pipeline.settings import resolve_options

_DEFAULTS = TrainConfig()
_SHOWN = {"batch_size": "canvas 192, patch 32 frames, cnn 16", "batches": "cluster; cnn shuffled"}
"""What help says of defaults that differ by model."""


@command("ptychozarr.train/1")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="RUN", help="folder to make, with bundle and report")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="go on with an interrupted run")
@click.option(
    "--model", type=click.Choice(["canvas", "patch", "cnn"]), help=f"what is trained [default: {_DEFAULTS.model}]"
)
@click.option(
    "--prior",
    type=click.Choice(["auto", "quadratic", "tv"]),
    help=f"of the solves that training starts from [default: {_DEFAULTS.prior.name}]",
)
@click.option("--modes", type=int, help="probe modes [default: those of the store; 4 where auto refines]")
@click.option(
    "--refine",
    type=click.Choice(["auto", "none", "probe", "probe,positions"]),
    help="what to mend besides the object, once, before training [default: auto for canvas, none for the others]",
)
@click.option("--steps", type=int, help="of the network [default: canvas 1000, patch 2050]")
@click.option("--epochs", type=int, help="in place of steps [default: cnn 50]")
@sampling_options(batches=["shuffled", "cluster"], shown=_SHOWN)
@click.option("--supervised", is_flag=True, default=None, help="patch and cnn: learn from the store's labels")
@click.option("--photons-per-frame", type=float, help="mean photons of a frame, where the store does not tell")
@click.option("--seed", type=int, help=f"of everything random [default: {_DEFAULTS.seed}]")
@click.option("--threads", type=int, help=f"of the computation; part of the result [default: {_DEFAULTS.threads}]")
@click.option("--num-workers", type=int, help="reading processes; no part of the result [default: 0]")
@click.option(
    "--deterministic/--no-deterministic", default=None,
    help="an error where an operation cannot promise its bits [default: --deterministic]",
)  # fmt: skip
@click.option("--accelerator", type=click.Choice(["cpu"]), help="where to compute [default: cpu]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any setting (run.toml of another run)")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="one setting, e.g. fit.learning_rate=1e-3")
@click.option("--catalog", type=click.Path(path_type=Path), help="look SOURCE up by name here")
@declaration_options
def main(
    *, source: Path | None, output: Path | None, resume: Path | None, model: str | None, prior: str | None,
    modes: int | None, refine: str | None, steps: int | None, epochs: int | None, supervised: bool | None,
    photons_per_frame: float | None, seed: int | None, threads: int | None, num_workers: int | None,
    deterministic: bool | None, accelerator: str | None, config: Path | None, sets: Sequence[str],
    catalog: Path | None, **more: Any,
) -> Outcome:  # fmt: skip
    """Train on SOURCE (a store, a legacy NPZ, or a catalog's name) from its photons alone, no truth needed.

    The scan is solved first. The model canvas learns to improve the solves of halves of its frames in the eyes of the
    frames that they did not use; patch and cnn learn from a frame or a group to its patches. RUN then holds wts.h5.zip,
    report.html, report.json and metrics.jsonl; the same inputs give the same bytes. A run that was stopped goes on with
    --resume RUN.
    """
    flags = {
        "model": ("--model", model), "prior.name": ("--prior", prior), "refine.modes": ("--modes", modes),
        "refine.what": ("--refine", refine), "fit.steps": ("--steps", steps), "fit.epochs": ("--epochs", epochs),
        "supervised": ("--supervised", supervised), "photons_per_frame": ("--photons-per-frame", photons_per_frame),
        "seed": ("--seed", seed), "threads": ("--threads", threads), "num_workers": ("--num-workers", num_workers),
        "deterministic": ("--[no-]deterministic", deterministic),
    }  # fmt: skip
    declared = {name: value for name, value in more.items() if name not in NAMES}
    ctx = click.get_current_context()
    if resume is not None:
        refuse_with_resume(ctx)
    elif source is None or output is None:
        raise click.UsageError("Give SOURCE and --output RUN, or --resume RUN.", ctx)
    else:
        sampling = given_sampling(more)
        tree = resolve_options(TrainConfig, file=config, sets=sets, flags={**flags, **sampling_flags(sampling)})
        refuse_idle(sampling, gridsize=tree.stream.gridsize, batches=tree.stream.batches)
    from pipeline.evaluation.facts import in_words
    from pipeline.evaluation.folder import at_work, begin_run, open_run
    from pipeline.evaluation.run import check_training, run_training
    from pipeline.scan.declaration import Declaration

    if resume is not None:
        run = open_run(resume, kind="train")
    else:
        assert source is not None
        assert output is not None
        run = begin_run(
            source, output, tree, kind="train", said=Declaration(**declared), catalog=catalog,
            command=as_typed(ctx, "pipeline.train"), check=lambda record: check_training(record, tree),
        )  # fmt: skip
    with at_work(run), Telling(steps=("fit",)) as telling:
        found = run_training(run, tell=telling.begin, hear=telling.hear)
    return Outcome(data=found, text=_text(found, in_words(found)))


def _text(found: Mapping[str, Any], words: str) -> str:
    return (
        f"{found['run']}: trained, {words}\n"
        f"  report  {found['run']}/report.html\n"
        f"  bundle  {found['bundle_path']}\n"
        f"bundle_sha256 {found['bundle_sha256']}"
    )


if __name__ == "__main__":
    main()
