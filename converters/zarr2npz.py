"""`python -m converters.zarr2npz STORE OUT.npz`: the source NPZ comes back, every member bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli import EXIT_FINDINGS, Outcome, command


@command("ptychozarr.restore/1")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.npz")
@click.option("--overwrite", is_flag=True, help="replace what is at OUT, once the new file is whole")
@click.option("--dry-run", is_flag=True, help="say what would be written; write nothing")
def main(*, store: Path, out: Path, overwrite: bool, dry_run: bool) -> Outcome:
    """Write the legacy NPZ that STORE was made from to OUT.npz (or into a folder, as NAME.npz).

    Each member is compared with the SHA-256 taken when it was read. Exit 3: a member comes back cast, because
    the conversion was told to drop its original; it is named.
    """
    from converters.restore import restore
    from pipeline.scan.record import open_record
    from pipeline.scan.restore import member_entries

    out = out / f"{store.resolve().stem}.npz" if out.is_dir() else out
    if dry_run:
        entries = member_entries(open_record(store))
        names = [entry["name"] for entry in entries]
        return Outcome(
            data={"store": str(store), "target": str(out), "members": names},
            text=f"{store} would be written to {out}: {', '.join(names) or 'the usual legacy names'}",
        )
    report = restore(store, out, overwrite=overwrite)
    data = {**asdict(report), "store": str(store), "target": str(out)}
    if not report.from_source:
        warning = f"{store} was not made from an NPZ; its variables were written under the usual legacy names"
        return Outcome(data=data, text=f"{store} is now {out}: {', '.join(report.members)}", warnings=[warning])
    same = ", the whole file byte for byte" if report.same_file else ""
    exact = len(report.members) - len(report.cast)
    done = "is now" if report.status == "written" else "is already"
    text = f"{store} {done} {out}: {exact} of {len(report.members)} members bit for bit{same}\nsha256 {report.sha256}"
    return Outcome(
        data=data,
        text=text,
        exit_code=EXIT_FINDINGS if report.cast else 0,
        warnings=[f"cast: {line}" for line in report.cast],
    )


if __name__ == "__main__":
    main()
