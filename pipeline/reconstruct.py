"""`python -m pipeline.reconstruct SOURCE --output DIR`: a scan's frames to its object, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli import Outcome, Telling, as_typed, command, refuse_with_resume
from pipeline.config import ReconstructConfig
from pipeline.scan.options import declaration_options
from pipeline.settings import resolve_options

_DEFAULTS = ReconstructConfig()


@command("ptychozarr.reconstruct/1")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="folder to make, with object and report")
@click.option("--bundle", type=click.Path(path_type=Path), help="wts.h5.zip of a network to improve the object with")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="go on with an interrupted run")
@click.option(
    "--prior",
    type=click.Choice(["auto", "quadratic", "tv"]),
    help=f"what the object is believed to be; held-out frames choose its weight [default: {_DEFAULTS.prior.name}]",
)
@click.option("--iterations", type=int, help=f"passes of the solve [default: {_DEFAULTS.solver.iterations}]")
@click.option("--modes", type=int, help="probe modes [default: those of the store; 4 where auto refines]")
@click.option(
    "--refine",
    type=click.Choice(["auto", "none", "probe", "probe,positions"]),
    help="what to mend besides the object; auto decides by how well the stored probe explains held-out frames "
    f"[default: {_DEFAULTS.refine.what}]",
)
@click.option("--photons-per-frame", type=float, help="mean photons of a frame, where the store does not tell")
@click.option(
    "--align-phases", type=int, metavar="N",
    help="with a bundle of patch or cnn: turn the patches' phases to each other, N power iterations [default: 0, not]",
)  # fmt: skip
@click.option("--seed", type=int, help=f"of the frames held out [default: {_DEFAULTS.seed}]")
@click.option("--threads", type=int, help=f"of the computation; part of the result [default: {_DEFAULTS.threads}]")
@click.option("--num-workers", type=int, help="reading processes; no part of the result [default: 0]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any setting (run.toml of another run)")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="one setting, e.g. solver.step=0.5")
@click.option("--catalog", type=click.Path(path_type=Path), help="look SOURCE up by name here")
@declaration_options
def main(
    *, source: Path | None, output: Path | None, bundle: Path | None, resume: Path | None, prior: str | None,
    iterations: int | None, modes: int | None, refine: str | None, photons_per_frame: float | None,
    align_phases: int | None, seed: int | None, threads: int | None, num_workers: int | None, config: Path | None,
    sets: Sequence[str], catalog: Path | None, **declared: Any,
) -> Outcome:  # fmt: skip
    """Find the object of SOURCE (a store, a legacy NPZ, or a catalog's name) from its photons, and report on it.

    A prior is chosen on frames held out from the solve; where the stored probe does not explain them, probe, modes and
    positions are refined. DIR then holds reconstruction.zarr, report.html and report.json; the same inputs give the
    same bytes. A run that was stopped goes on with --resume DIR.
    """
    flags = {
        "prior.name": ("--prior", prior), "solver.iterations": ("--iterations", iterations),
        "refine.iterations": ("--iterations", iterations), "refine.modes": ("--modes", modes),
        "refine.what": ("--refine", refine), "photons_per_frame": ("--photons-per-frame", photons_per_frame),
        "align_phases": ("--align-phases", align_phases), "seed": ("--seed", seed),
        "threads": ("--threads", threads), "num_workers": ("--num-workers", num_workers),
    }  # fmt: skip
    ctx = click.get_current_context()
    if resume is not None:
        refuse_with_resume(ctx)
    elif source is None or output is None:
        raise click.UsageError("Give SOURCE and --output DIR, or --resume DIR.", ctx)
    else:
        tree = resolve_options(ReconstructConfig, file=config, sets=sets, flags=flags)
    from pipeline.evaluation.facts import in_words
    from pipeline.evaluation.folder import at_work, begin_run, open_run
    from pipeline.evaluation.run import about_bundle, check_reconstruction, run_reconstruction
    from pipeline.scan.declaration import Declaration

    if resume is not None:
        run = open_run(resume, kind="reconstruct")
    else:
        assert source is not None
        assert output is not None
        run = begin_run(
            source, output, tree, kind="reconstruct", said=Declaration(**declared), catalog=catalog,
            command=as_typed(ctx, "pipeline.reconstruct"),
            check=lambda record: check_reconstruction(record, tree, bundle=bundle),
            about=None if bundle is None else about_bundle(bundle),
        )  # fmt: skip
    with at_work(run), Telling() as telling:
        found = dict(run_reconstruction(run, tell=telling.begin, hear=telling.hear))
    warnings = found.pop("warnings")
    return Outcome(data=found, text=_text(found, in_words(found)), warnings=warnings)


def _text(found: Mapping[str, Any], words: str) -> str:
    return (
        f"{found['output']}: object, {words}\n"
        f"  report  {found['output']}/report.html\n"
        f"  object  {found['output']}/reconstruction.zarr\n"
        f"reconstruction_sha256 {found['reconstruction_sha256']}"
    )


if __name__ == "__main__":
    main()
