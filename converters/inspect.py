"""`python -m converters.inspect FILE...`: what a legacy NPZ is, what it would become, which options it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli import Outcome, command
from pipeline.scan.options import declaration_options


@command("ptychozarr.inspect/1")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@declaration_options
def main(*, files: tuple[Path, ...], **declared: Any) -> Outcome:
    """Look at each FILE: its members, what they mean and why, and whether it can be converted.

    Reads headers, coordinates and a bounded sample. Exit 0: convertible as it is. Exit 3: needs the option
    that is named. Exit 4: cannot be converted. Exit 5: no such file.
    """
    from converters.examine import examine, finding_data, finding_text
    from pipeline.scan.declaration import Declaration

    findings = [examine(path, Declaration(**declared)) for path in files]
    return Outcome(
        data={"files": [finding_data(f) for f in findings]},
        text="\n\n".join(finding_text(f) for f in findings),
        exit_code=max(f.exit_code for f in findings),
    )


if __name__ == "__main__":
    main()
