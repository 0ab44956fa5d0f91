"""`python -m pipeline.verify PATH`: re-hash everything that a store claims."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli import Outcome, command, progress

EXIT_DAMAGED = 6


@command("ptychozarr.verify/1")
@click.argument("path", type=click.Path(path_type=Path))
def main(*, path: Path) -> Outcome:
    """Re-hash every file of the store at PATH and compare it with its manifest.

    Exit 0: complete and unchanged. Exit 6: each differing, missing or unlisted file is named, with its frames.
    """
    from pipeline.errors import NotFoundError, SourceError
    from pipeline.scan.audit import audit_store
    from pipeline.scan.record import is_store

    if not path.exists():
        raise NotFoundError(f"{path}: no such store", code="store.not_found")
    if not path.is_dir() or not is_store(path):
        raise SourceError(f"{path}: not a ptychozarr store (no zarr.json, no manifest.json)", code="store.foreign")
    total = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    audit = audit_store(path, progress=progress(str(path), total, unit="byte"))
    data = {"path": str(path), **asdict(audit)}
    if not audit.damages:
        return Outcome(
            data=data,
            text=f"{path}: {audit.n_files} files, {audit.n_bytes} bytes, all as written\n"
            f"store_sha256 {audit.store_sha256}",
        )
    lines = [f"{path}: {len(audit.damages)} damaged of {audit.n_files} files"]
    lines += [f"  {d.holds}: {d.found}" for d in audit.damages]
    return Outcome(data=data, text="\n".join(lines), exit_code=EXIT_DAMAGED)


if __name__ == "__main__":
    main()
