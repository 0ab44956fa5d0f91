"""`python -m converters.npz2zarr SOURCE DEST`: a legacy NPZ becomes a canonical, verified Zarr store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli import Outcome, command, progress
from pipeline.scan.options import declaration_options


@command("ptychozarr.convert/1")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@declaration_options
@click.option("--drop-original", is_flag=True, help="do not keep a float64 stack that float32 cannot give back")
@click.option("--overwrite", is_flag=True, help="replace what is at DEST, once the new store is whole")
@click.option("--dry-run", is_flag=True, help="say what would be done; write nothing")
def main(*, source: Path, dest: Path, drop_original: bool, overwrite: bool, dry_run: bool, **declared: Any) -> Outcome:
    """Convert the legacy NPZ SOURCE to the store DEST (NAME.zarr, or a folder to put NAME.zarr into).

    Everything is verified before DEST appears. What the file does not tell is asked for, never guessed:
    python -m converters.inspect SOURCE shows what it is and which options it needs.
    """
    from converters.convert import ConvertConfig, convert, plan_conversion
    from converters.telling import report_data, report_text
    from pipeline.scan.declaration import Declaration

    target = dest / f"{source.stem}.zarr" if dest.is_dir() and dest.suffix != ".zarr" else dest
    config = ConvertConfig(
        source=source,
        target=target,
        declaration=Declaration(**declared),
        overwrite=overwrite,
        drop_original=drop_original,
    )
    report = plan_conversion(config) if dry_run else convert(config, progress=progress)
    return Outcome(data=report_data(report), text=report_text(report), warnings=report.plan.layout.warnings)


if __name__ == "__main__":
    main()
