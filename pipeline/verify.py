"""`python -m pipeline.verify PATH`: re-hash everything that a store, a bundle, a run or a study claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli import EXIT_FINDINGS, Outcome, command, progress

EXIT_DAMAGED = 6


@command("ptychozarr.verify/1")
@click.argument("path", type=click.Path(path_type=Path))
def main(*, path: Path) -> Outcome:
    """Re-hash everything that PATH claims: a store, a bundle (wts.h5.zip), the folder of a run, or that of a study.

    A store is compared with its manifest, a bundle byte for byte with what its manifest allows. Of a run its store,
    its reconstruction and its bundle are, and whether they and its report name each other rightly. Of a study all of
    that, and its manifests.

    Exit 0: complete and unchanged. Exit 3: unchanged as far as it is there, but a run is not finished, its store has
    gone, or a job of a study failed. Exit 6: each differing, missing or unlisted file is named, with its frames.
    """
    from pipeline.errors import NotFoundError, SourceError
    from pipeline.scan.audit_run import is_run
    from pipeline.scan.audit_study import is_study
    from pipeline.scan.record import is_store

    if not path.exists():
        raise NotFoundError(f"{path}: nothing is there", code="store.not_found")
    if path.is_file():
        return _bundle(path)
    if is_store(path):
        return _store(path)
    if is_run(path):
        return _run(path)
    if is_study(path):
        return audited_study(path)
    raise SourceError(
        f"{path}: neither a ptychozarr store (no zarr.json, no manifest.json), nor a run (no run.json), nor a study",
        code="store.foreign",
    )


def _store(path: Path) -> Outcome:
    from pipeline.scan.audit import audit_store

    total = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    audit = audit_store(path, progress=progress(str(path), total, unit="byte"))
    damaged = f"{len(audit.damages)} damaged of {audit.n_files} files"
    parts = [f"store_sha256 {audit.store_sha256}"]
    return _outcome(
        path, "store", asdict(audit), whole=_size(audit.n_files, audit.n_bytes), damaged=damaged, parts=parts
    )


def _bundle(path: Path) -> Outcome:
    from pipeline.scan.bundle import audit_bundle

    audit = audit_bundle(path)
    whole = f"a bundle of {_size(audit.n_files, audit.n_bytes)}"
    parts = [f"bundle_sha256 {audit.bundle_sha256}"]
    return _outcome(path, "bundle", asdict(audit), whole=whole, damaged="a damaged bundle", parts=parts)


def _run(path: Path) -> Outcome:
    from pipeline.scan.audit_run import audit_run

    audit = audit_run(path, tell=lambda name, total: progress(name, total, unit="byte"))
    whole, damaged = f"a run of {audit.run_kind}", f"a run of {audit.run_kind}, {len(audit.damages)} damaged"
    parts = [f"  {part.name}: {_size(part.n_files, part.n_bytes)}, sha256 {part.sha256}" for part in audit.parts]
    return _outcome(path, "run", asdict(audit), whole=whole, damaged=damaged, parts=parts)


def audited_study(path: Path) -> Outcome:
    """What re-hashing the study at `path` found, as `study verify` tells it too.

    Raises
    ------
    NotFoundError
        There is no manifest of a study.
    """
    from pipeline.scan.audit_study import audit_study

    audit = audit_study(path, tell=lambda name, total: progress(name, total, unit="byte"))
    size = sum(part.n_bytes for part in audit.parts)
    whole = f"a study of {len(audit.manifests)} manifests and {len(audit.parts)} parts, {size} bytes"
    damaged = f"a study, {len(audit.damages)} damaged"
    return _outcome(path, "study", asdict(audit), whole=whole, damaged=damaged, parts=())


def _size(n_files: int, n_bytes: int) -> str:
    return f"{n_files} files, {n_bytes} bytes"


def _outcome(
    path: Path, kind: str, audit: Mapping[str, Any], *, whole: str, damaged: str, parts: Sequence[str]
) -> Outcome:
    """What an audit found, for people and programs. Damage outweighs what could not be compared."""
    data = {"path": str(path), "kind": kind, **audit}
    findings = [f"  {finding['told']}" for finding in audit.get("findings", ())]
    if audit["damages"]:
        damages = [f"  {damage['holds']}: {damage['found']}" for damage in audit["damages"]]
        text = "\n".join([f"{path}: {damaged}", *damages, *findings])
        return Outcome(data=data, text=text, exit_code=EXIT_DAMAGED)
    verdict = "as far as it is there, as written" if findings else "all as written"
    text = "\n".join([f"{path}: {whole}, {verdict}", *findings, *parts])
    return Outcome(data=data, text=text, exit_code=EXIT_FINDINGS if findings else 0)


if __name__ == "__main__":
    main()
