"""The manifests of a study: everything that they claim compared with what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import IntegrityError, NotFoundError, SourceError
from pipeline.scan.audit import Damage, audit_store
from pipeline.scan.audit_run import Finding, Part, Tell, audit_run, bytes_below
from pipeline.scan.manifest import MANIFEST_NAME
from pipeline.scan.npz import sha256_file
from pipeline.scan.record import is_store
from pipeline.scan.sealed import changes, read_document, sealed

GENERATED: Final = "run_manifest.json"
VIEWED: Final = "overlap_manifest.json"
TRAINED: Final = "training_manifest.json"
ENTRY_SEAL: Final = "entry_sha256"
_DESIGN: Final = "design.json"

Item = Part | Damage | Finding


def job_folder(entry: Mapping[str, Any]) -> str:
    """The folder of a job below its artifact root, from its dose, view and gridsize."""
    return f"dose_{int(entry['dose'])}/{entry['view']}/gs{entry['gridsize']}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAudit:
    """What was compared below a folder, what differs, and what could not be compared."""

    manifests: tuple[str, ...]
    parts: tuple[Part, ...]
    damages: tuple[Damage, ...]
    findings: tuple[Finding, ...]


def manifests_below(root: Path) -> list[Path]:
    """The manifests of a study in a folder and in the folders below it, but not inside stores and runs."""
    found, folders = list[Path](), [root]
    while folders:
        folder = folders.pop()
        found += [folder / name for name in (GENERATED, VIEWED, TRAINED) if (folder / name).is_file()]
        for below in folder.iterdir():
            inside = below.is_dir() and not below.is_symlink() and not below.name.startswith(".")
            if inside and not is_store(below) and not (below / "run.json").exists():
                folders.append(below)
    return sorted(found)


def is_study(path: Path) -> bool:
    """True where a folder, or one below it, holds a manifest of a study."""
    return path.is_dir() and bool(manifests_below(path))


def audit_study(root: Path, *, tell: Tell) -> StudyAudit:
    """Re-hash everything that the manifests below `root` claim. Damage is returned, not raised.

    Raises
    ------
    NotFoundError
        There is no manifest.
    """
    if not root.exists():
        raise NotFoundError(f"{root}: nothing is there", code="study.not_found")
    manifests = manifests_below(root) if root.is_dir() else []
    if not manifests:
        raise NotFoundError(f"{root}: no manifest of a study", code="study.not_found")
    items = [item for path in manifests for item in _items(path, root, tell)]
    return StudyAudit(
        manifests=tuple(path.relative_to(root).as_posix() for path in manifests),
        parts=tuple(item for item in items if isinstance(item, Part)),
        damages=tuple(item for item in items if isinstance(item, Damage)),
        findings=tuple(item for item in items if isinstance(item, Finding)),
    )


def _items(path: Path, root: Path, tell: Tell) -> Iterator[Item]:
    name = path.relative_to(root).as_posix()
    try:
        document = read_document(path)
        seal = None if path.name == GENERATED else "manifest_sha256"
        for found in changes(path, document, key=seal):
            yield Damage(path=name, holds=name, found=found)
        claims = {GENERATED: _generated, VIEWED: _viewed, TRAINED: _trained}[path.name]
        yield from claims(path, document, root, tell)
    except IntegrityError as exc:
        yield Damage(path=name, holds=name, found=exc.message)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        yield Damage(path=name, holds=name, found=f"not as it was written: {exc!r}")


def _generated(path: Path, document: Mapping[str, Any], root: Path, tell: Tell) -> Iterator[Item]:
    name = path.relative_to(root).as_posix()
    if (path.parent / _DESIGN).is_file():
        doses = [f"dose_{int(dose)}" for dose in read_document(path.parent / _DESIGN)["doses"]]
        yield from (Finding(told=f"{name}: tells nothing of {dose}") for dose in doses if dose not in document)
    for promised in sorted({entry["design_sha256"] for entry in document.values()}):
        yield from _file(path.parent / _DESIGN, promised, root, tell)
    for key, entry in document.items():
        if entry != sealed(entry, key=ENTRY_SEAL) or key != f"dose_{int(entry['dose'])}":
            yield Damage(path=name, holds=f"{name}: {key}", found=f"its content is not what its {ENTRY_SEAL} says")
            continue
        for split in ("train", "test"):
            yield from _store(path.parent / entry[split], entry[f"{split}_store_sha256"], root, tell)
        for file in (entry["legacy_npz"] or {}).values():
            yield from _file(path.parent / file["path"], file["sha256"], root, tell)


def _viewed(path: Path, document: Mapping[str, Any], root: Path, tell: Tell) -> Iterator[Item]:
    name = path.relative_to(root).as_posix()
    for view in document["failed_views"]:
        yield Finding(told=f"{name}: {view['view']} of dose {view['dose']} failed: {view['error']}")
    for view in document["views"]:
        for store in view["stores"].values():
            yield from _store(path.parent / store["path"], store["store_sha256"], root, tell)
        for file in view["metrics"].values():
            yield from _file(path.parent / file["path"], file["sha256"], root, tell)
        for source in view["sources"].values():
            yield from _source(Path(document["phase_c_root"]), view, source, name)


def _source(phase_c: Path, view: Mapping[str, Any], source: Mapping[str, Any], name: str) -> Iterator[Damage]:
    """Whether the frames that a view was made of are still those, where they lie where they lay then."""
    folder = phase_c if view["dose"] is None else phase_c / f"dose_{view['dose']}"
    place = (folder if folder.is_dir() else phase_c) / source["name"]
    if is_store(place):
        found, promised = sha256_file(place / MANIFEST_NAME), source.get("store_sha256")
    elif place.is_file():
        found, promised = sha256_file(place), source.get("sha256")
    else:
        return
    if found != promised:
        told = f"{view['view']} was made of {place} with the digest {promised}, and now it has {found}"
        yield Damage(path=name, holds=name, found=told)


def _trained(path: Path, document: Mapping[str, Any], root: Path, tell: Tell) -> Iterator[Item]:
    name = path.relative_to(root).as_posix()
    if document["dry_run"]:
        yield Finding(told=f"{name}: of a dry run, so nothing is claimed")
        return
    for entry in document["jobs"]:
        place, result = path.parent / job_folder(entry), entry["result"]
        job, bundle = place.relative_to(root).as_posix(), result
        if result["status"] != "success":
            yield Finding(told=f"{job}: failed: {result['error']}")
            bundle = result["last_bundle"]
        if bundle is not None or (place / "run.json").exists():
            yield from _run(place, job, tell)
        if bundle is not None:
            yield from _bundle(place / bundle["bundle_path"], bundle, f"{job}/{bundle['bundle_path']}")
    skips = path.parent / document["skip_summary_path"]
    yield from _skips(skips, document, skips.relative_to(root).as_posix())


def _store(place: Path, promised: str, root: Path, tell: Tell) -> Iterator[Item]:
    name = place.relative_to(root).as_posix()
    if place.is_symlink() or not is_store(place):
        yield Damage(path=name, holds=name, found="no store of ours" if place.exists() else "missing")
        return
    audit = audit_store(place, progress=tell(name, bytes_below(place)))
    yield Part(name=name, path=str(place), sha256=audit.store_sha256, n_files=audit.n_files, n_bytes=audit.n_bytes)
    yield from (
        Damage(path=f"{name}/{damage.path}", holds=f"{name}: {damage.holds}", found=damage.found)
        for damage in audit.damages
    )
    if not audit.damages and audit.store_sha256 != promised:
        yield Damage(path=name, holds=name, found=f"its store_sha256 is {audit.store_sha256}, promised was {promised}")


def _file(place: Path, promised: str, root: Path, tell: Tell) -> Iterator[Item]:
    name = place.relative_to(root).as_posix()
    if place.is_symlink() or not place.is_file():
        yield Damage(path=name, holds=name, found="not a plain file" if place.exists() else "missing")
        return
    size = place.stat().st_size
    found = sha256_file(place)
    tell(name, size)(size)
    yield Part(name=name, path=str(place), sha256=found, n_files=1, n_bytes=size)
    if found != promised:
        yield Damage(path=name, holds=name, found=f"its SHA-256 is {found}, promised was {promised}")


def _run(place: Path, name: str, tell: Tell) -> Iterator[Item]:
    """The run of a job, its store and its bundle among it."""

    def told(part: str, total: int) -> Callable[[int], None]:
        return tell(f"{name}/{part}", total)

    try:
        audit = audit_run(place, tell=told)
    except (NotFoundError, SourceError) as exc:
        yield Damage(path=name, holds=name, found=exc.message)
        return
    for part in audit.parts:
        yield Part(name=f"{name}: {part.name}", path=part.path, sha256=part.sha256, n_files=part.n_files,
                   n_bytes=part.n_bytes)  # fmt: skip
    for damage in audit.damages:
        yield Damage(path=f"{name}/{damage.path}", holds=f"{name}: {damage.holds}", found=damage.found)
    yield from (Finding(told=f"{name}: {finding.told}") for finding in audit.findings)


def _bundle(place: Path, result: Mapping[str, Any], name: str) -> Iterator[Item]:
    """Whether the bundle is the very one that the manifest tells of; damage inside it is told with its run."""
    if not place.is_file():
        yield Damage(path=name, holds=name, found="missing")
        return
    found, size = sha256_file(place), place.stat().st_size
    if (found, size) != (result["bundle_sha256"], result["bundle_size_bytes"]):
        told = f"SHA-256 {found} and {size} bytes, the manifest says {result['bundle_sha256']} and "
        yield Damage(path=name, holds=name, found=f"{told}{result['bundle_size_bytes']}")


def _skips(place: Path, document: Mapping[str, Any], name: str) -> Iterator[Item]:
    if not place.is_file():
        yield Damage(path=name, holds=name, found="missing")
        return
    summary = read_document(place)
    if any(summary.get(key) != document[key] for key in ("skipped_views", "skipped_count")):
        yield Damage(path=name, holds=name, found="is not what the manifest says of the views that were skipped")
    yield from (Damage(path=name, holds=name, found=found) for found in changes(place, summary))
