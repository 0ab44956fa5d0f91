"""The folder of a run: what its small files say, and all of it compared with what it claims."""

from __future__ import annotations

import json
import math
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import IntegrityError, NotFoundError, SourceError
from pipeline.scan.audit import Damage, audit_store
from pipeline.scan.bundle import BUNDLE_NAME, audit_bundle, read_claims
from pipeline.scan.record import StoreRecord, is_store, open_record

FACTS_NAME: Final = "run.json"
CONFIG_NAME: Final = "run.toml"
REPORT_NAME: Final = "report.json"
RESULT_NAME: Final = "reconstruction.zarr"
DATA_NAME: Final = "data.zarr"
CHECKPOINTS: Final = "checkpoints"
PARTS: Final = frozenset({DATA_NAME, RESULT_NAME, CHECKPOINTS})
"""The folders inside a run that are its own."""
FORMAT: Final = "ptychozarr-run/1"
_LAST: Final = {"reconstruct": RESULT_NAME, "train": BUNDLE_NAME}
"""What a run of each kind makes last. Until it is there, the report may be an earlier one and is made again."""
_MAX_TEXT_BYTES: Final = 64 << 20

Tell = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A store or bundle of a run that was read to its last byte, and what its digest is."""

    name: str
    path: str
    sha256: str | None
    n_files: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What could not be compared, in words."""

    told: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAudit:
    """What was compared in a run, what differs, and what could not be compared."""

    run_kind: str
    parts: tuple[Part, ...]
    damages: tuple[Damage, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claims:
    """What run.json says: what can be compared, and all of it."""

    run: Path
    kind: str
    store: str
    store_sha256: str
    facts: Mapping[str, Any]

    @property
    def place(self) -> Path:
        """Where the store should be."""
        return self.run / self.store

    @property
    def store_inside(self) -> bool:
        """Whether the store is the run's own, which then has to be there."""
        place = Path(self.store)
        return not place.is_absolute() and ".." not in place.parts


Item = Part | Damage | Finding


def is_run(path: Path) -> bool:
    """True where a folder holds the facts of a run."""
    return (path / FACTS_NAME).is_file()


def resuming(kind: str, path: Path) -> str:
    """The command that goes on with a run."""
    return shlex.join(["python", "-m", f"pipeline.{kind}", "--resume", str(path)])


def holds_run(names: Collection[str]) -> bool:
    """Whether files and folders of these names are those of a run, whole or with one of its two first files lost."""
    first = {FACTS_NAME, CONFIG_NAME}.intersection(names)
    return len(first) == 2 or bool(first and {CHECKPOINTS, *_LAST.values()}.intersection(names))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run as its small files tell of it; no frame, no object and no weight was read.

    kind : "train" or "reconstruct". last : what it makes last; `finished` where that is there.
    resume : the command that goes on with it; None where it is finished. command : the one that began it.
    source : {name, sha256} of the file behind the store. store : its place, as recorded. config : run.toml.
    report : report.json; empty until the run is finished. result : its reconstruction.
    losses : per good pixel on held-out frames, of the solver, of the network, of photon noise alone; None if unknown.
    bundle_sha256 : what the report says of the bundle that was made, or the facts of the one that was used.
    """

    path: Path
    kind: str
    last: str
    finished: bool
    resume: str | None
    command: str
    source: Mapping[str, str | None]
    store: Path
    store_sha256: str
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    result: StoreRecord | None
    losses: Mapping[str, float | None]
    bundle_sha256: str | None


def open_run_record(path: Path) -> RunRecord:
    """The record of the run at `path`. What is not compared here `audit_run` compares.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no run of ours.
    IntegrityError
        A small file cannot be read, a part is missing or damaged, or one names another wrongly.
    """
    claims = _claims(path)
    if claims.kind not in _LAST:
        raise SourceError(f"{path}: a run of {claims.kind}, which is not known here", code="run.foreign")
    facts, last = claims.facts, _LAST[claims.kind]
    finished = (path / last).exists()
    try:
        config = tomllib.loads(_text(path / CONFIG_NAME))
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{CONFIG_NAME}: cannot be read: {exc}", code="run.damaged") from exc
    if not finished:
        _refuse(_end(claims, None))
    if claims.store_inside:
        _refuse(_differing(claims.store, "store_sha256", open_record(claims.place).store_sha256, claims.store_sha256))
    report = _report_of(claims) if finished else {}
    result = open_record(path / RESULT_NAME) if finished and last == RESULT_NAME else None
    try:
        used = facts.get("bundle", {}).get("sha256")
        bundle_sha256 = _word(used if last == RESULT_NAME else report.get("bundle_sha256"))
        if result:
            _refuse(_differing(RESULT_NAME, "store_sha256", result.attrs["store_sha256"], claims.store_sha256))
            _refuse(_differing(RESULT_NAME, "bundle_sha256", result.attrs["bundle_sha256"], str(used)))
        elif finished:
            made_from = read_claims(path / BUNDLE_NAME).get("store_sha256")
            _refuse(_differing(BUNDLE_NAME, "store_sha256", made_from, claims.store_sha256))
        source = facts.get("source", {})
        return RunRecord(
            path=path,
            kind=claims.kind,
            last=last,
            finished=finished,
            resume=None if finished else resuming(claims.kind, path),
            command=_word(shlex.join(facts.get("command", ()))) or "",
            source={name: _word(source.get(name)) for name in ("name", "sha256")},
            store=claims.place,
            store_sha256=claims.store_sha256,
            config=config,
            report=report,
            result=result,
            losses=_losses(result, report),
            bundle_sha256=bundle_sha256,
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise IntegrityError(f"{path}: not as it was written: {exc!r}", code="run.damaged") from exc


def _refuse(items: Iterable[Item]) -> None:
    for item in items:
        if isinstance(item, Damage):
            raise IntegrityError(f"{item.holds}: {item.found}", code="run.damaged")


def _report_of(claims: _Claims) -> Mapping[str, Any]:
    _refuse(_report(claims, None))
    return _document(claims.run / REPORT_NAME)


def _losses(result: StoreRecord | None, report: Mapping[str, Any]) -> Mapping[str, float | None]:
    if result is not None:
        told = result.attrs.get("nll", {})
    else:
        told = {"solver": report.get("nll_held_out"), "floor": report.get("nll_floor")}
    return {name: _number(told.get(name)) for name in ("solver", "network", "floor")}


def _number(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{ascii(value)[:70]} is no number")
    return float(value)


def _word(value: object) -> str | None:
    """A name or digest that a run tells, or None.

    Raises
    ------
    TypeError
        It is something else.
    """
    if value is None or (isinstance(value, str) and value.isprintable()):
        return value
    raise TypeError(f"{ascii(value)[:70]} is no name")


def audit_run(path: Path, *, tell: Tell) -> RunAudit:
    """Re-hash everything that the run at `path` claims. Damage is returned, not raised.

    Parameters
    ----------
    tell : gets the name of a part and its bytes; gives what is called with each number of bytes done.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no run of ours.
    """
    claims = _claims(path)
    items: list[Item] = [*_store(claims, tell), *_bundle(claims, tell)]
    bundle = next((item.sha256 for item in items if isinstance(item, Part) and item.name == BUNDLE_NAME), None)
    items += [*_result(claims, bundle, tell), *_end(claims, bundle), *_configuration(claims)]
    return RunAudit(
        run_kind=claims.kind,
        parts=tuple(item for item in items if isinstance(item, Part)),
        damages=tuple(item for item in items if isinstance(item, Damage)),
        findings=tuple(item for item in items if isinstance(item, Finding)),
    )


def _claims(run: Path) -> _Claims:
    if not run.exists():
        raise NotFoundError(f"{run}: no such run", code="run.not_found")
    try:
        facts = _document(run / FACTS_NAME)
        kind, store, promised = (str(facts[name]) for name in ("kind", "store", "store_sha256"))
        ours = facts["format"] == FORMAT and kind.isidentifier() and store.isprintable() and promised.isalnum()
    except (OSError, ValueError, KeyError) as exc:
        raise SourceError(f"{run}: no run of ours: {FACTS_NAME}: {exc!r}", code="run.foreign") from exc
    if not ours:
        raise SourceError(f"{run}: no run of ours: {FACTS_NAME} is not as {FORMAT} has it", code="run.foreign")
    return _Claims(run=run, kind=kind, store=store, store_sha256=promised, facts=facts)


def _document(path: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises
    ------
    OSError, ValueError
    """
    try:
        document = json.loads(_text(path))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def _text(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        raise ValueError("missing, or not a plain file")
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"larger than any of ours ({_MAX_TEXT_BYTES} bytes)")
    return path.read_text(encoding="utf-8")


def _store(claims: _Claims, tell: Tell) -> Iterator[Item]:
    place = claims.place
    if claims.store_inside:
        yield from _whole_store(claims.store, place, tell, promised=claims.store_sha256)
    elif is_store(place):
        yield from _whole_store(str(place), place, tell, promised=claims.store_sha256)
    else:
        yield Finding(
            told=f"{place}: the store is not there any more, so only its digest is known: "
            f"store_sha256 {claims.store_sha256}"
        )


def _whole_store(name: str, place: Path, tell: Tell, *, promised: str | None = None) -> Iterator[Item]:
    """A store of the run, and what differs in it or from the digest that the run promised."""
    if not is_store(place) or place.is_symlink():
        found = "a link, not the run's own" if place.is_symlink() else "missing" if not place.exists() else "no store"
        yield Damage(path=name, holds=name, found=found)
        return
    audit = audit_store(place, progress=tell(name, bytes_below(place)))
    yield Part(name=name, path=str(place), sha256=audit.store_sha256, n_files=audit.n_files, n_bytes=audit.n_bytes)
    yield from _within(name, audit.damages)
    if promised is not None and audit.store_sha256 not in (None, promised):
        yield Damage(
            path=name,
            holds=name,
            found=f"its store_sha256 is {audit.store_sha256}, the run was begun with {promised}",
        )


def _bundle(claims: _Claims, tell: Tell) -> Iterator[Item]:
    place = claims.run / BUNDLE_NAME
    if place.is_symlink():
        yield Damage(path=BUNDLE_NAME, holds=BUNDLE_NAME, found="a link, not the run's own")
        return
    if not place.exists():
        return
    try:
        audit = audit_bundle(place)
    except (SourceError, IntegrityError) as exc:
        yield Damage(path=BUNDLE_NAME, holds=BUNDLE_NAME, found=exc.message)
        return
    tell(BUNDLE_NAME, audit.n_bytes)(audit.n_bytes)
    yield Part(
        name=BUNDLE_NAME, path=str(place), sha256=audit.bundle_sha256, n_files=audit.n_files, n_bytes=audit.n_bytes
    )
    yield from _within(BUNDLE_NAME, audit.damages)
    yield from _differing(BUNDLE_NAME, "store_sha256", audit.lineage.get("store_sha256"), claims.store_sha256)


def _result(claims: _Claims, bundle: str | None, tell: Tell) -> Iterator[Item]:
    place = claims.run / RESULT_NAME
    if not place.exists() and not place.is_symlink():
        return
    items = list(_whole_store(RESULT_NAME, place, tell))
    yield from items
    if any(isinstance(item, Damage) for item in items):
        return
    attrs = open_record(place).attrs
    yield from _differing(RESULT_NAME, "store_sha256", attrs.get("store_sha256"), claims.store_sha256)
    if bundle is not None:
        yield from _differing(RESULT_NAME, "bundle_sha256", attrs.get("bundle_sha256"), bundle)


def _end(claims: _Claims, bundle: str | None) -> Iterator[Item]:
    """Whether the run came to its end, and what it reported then."""
    last, report = _LAST.get(claims.kind), claims.run / REPORT_NAME
    if last is not None and not (claims.run / last).exists():
        if (claims.run / CHECKPOINTS).is_dir():
            again = resuming(claims.kind, claims.run)
            yield Finding(told=f"the run is not finished: {last} is not there yet; go on with {again}")
        else:
            yield Damage(path=last, holds=last, found="missing, and so is the state to make it from")
    elif last is not None or report.exists():
        yield from _report(claims, bundle)


def _report(claims: _Claims, bundle: str | None) -> Iterator[Damage]:
    try:
        report = _document(claims.run / REPORT_NAME)
    except ValueError as exc:
        yield Damage(path=REPORT_NAME, holds=REPORT_NAME, found=f"cannot be read: {exc}")
        return
    source = report.get("source")
    if isinstance(source, dict):
        yield from _differing(REPORT_NAME, "store_sha256", source.get("store_sha256"), claims.store_sha256)
    named = report.get("bundle_sha256")
    if bundle is not None and named != bundle:
        told = f"says bundle_sha256 {ascii(named)[:70]}, that of {BUNDLE_NAME} is {bundle}"
        yield Damage(path=REPORT_NAME, holds=REPORT_NAME, found=told)


def _configuration(claims: _Claims) -> Iterator[Item]:
    try:
        tomllib.loads(_text(claims.run / CONFIG_NAME))
    except (ValueError, RecursionError) as exc:
        yield Damage(path=CONFIG_NAME, holds=CONFIG_NAME, found=f"cannot be read: {exc}")


def _within(name: str, damages: Iterable[Damage]) -> Iterator[Damage]:
    """The damages of a part, named as the run sees them."""
    for damage in damages:
        path = f"{name}/{damage.path}" if damage.path else name
        yield Damage(path=path, holds=f"{name}: {damage.holds}", found=damage.found)


def _differing(name: str, key: str, said: object, expected: str) -> Iterator[Damage]:
    """A digest that a part tells of another, where it tells one."""
    if said is not None and said != expected:
        yield Damage(path=name, holds=name, found=f"says {key} {ascii(said)[:70]}, the run's is {expected}")


def bytes_below(root: Path) -> int:
    """The bytes of every file in a folder and below it."""
    return sum(path.lstat().st_size for path in root.rglob("*"))
