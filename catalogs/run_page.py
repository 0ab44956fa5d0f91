"""One run in full, from its small files alone, for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from catalogs.entry import KINDS
from pipeline.errors import PipelineError
from pipeline.scan.audit_run import RunRecord, open_run_record
from pipeline.scan.record import is_store

_UNKNOWN = "unknown"


def page_data(path: Path) -> Mapping[str, Any]:
    """What the files of a run say; `problem` says why where they cannot be read."""
    try:
        run = open_run_record(path)
        return {"path": str(path), "problem": None, **_facts(run)}
    except (PipelineError, OSError) as exc:  # the page of a broken run says why
        return {"path": str(path), "problem": str(exc)}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:  # facts of a stranger under our names
        return {"path": str(path), "problem": f"not as it was written: {exc!r}"}


def _facts(run: RunRecord) -> Mapping[str, Any]:
    about = run.report if run.result is None else run.result.attrs
    loss = about.get("loss")
    prior, refine = (about.get(name) or {} for name in ("prior", "refine"))
    return {
        "kind": KINDS[run.kind],
        "finished": run.finished,
        "resume": run.resume,
        "source": dict(run.source),
        "store": str(run.store),
        "store_there": is_store(run.store),
        "store_sha256": run.store_sha256,
        "configuration": dict(run.config),
        "seed": run.config.get("seed"),
        "model": run.config.get("model"),
        "prior": {"name": prior.get("name"), "lam": prior.get("lam")},
        "refine": {"what": refine.get("what"), "modes": refine.get("modes"), "reason": _reason(run)},
        "loss": loss.get("name") if isinstance(loss, Mapping) else loss,
        "nll": dict(run.losses),
        "bundle_sha256": run.bundle_sha256,
        "reconstruction_sha256": None if run.result is None else run.result.store_sha256,
        "command": run.command,
    }


def _reason(run: RunRecord) -> str | None:
    reason: str | None = (run.report.get("refine") or {}).get("reason")
    return reason


def page(data: Mapping[str, Any]) -> str:
    """The page of a run for people."""
    if data["problem"] is not None:
        return f"{data['path']}\n  BROKEN: {data['problem']}"
    lines = [f"{data['path']}: a {data['kind']}, {'finished' if data['finished'] else 'incomplete'}"]
    if data["resume"] is not None:
        lines += ["  go on with", f"    {data['resume']}"]
    lines += ["", "  facts", *(f"    {name:<22} {_plain(text)}" for name, text in _rows(data))]
    lines += ["", "  lineage", *(f"    {name:<22} {_plain(text)}" for name, text in _lineage(data))]
    return "\n".join([*lines, "", "  run it again", f"    {data['command'] or _UNKNOWN}"])


def _rows(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    asked, finished = data["configuration"], data["finished"]
    prior, refine, nll = data["prior"], data["refine"], data["nll"]
    yield "seed", data["seed"]
    if data["model"] is not None:
        yield "model", data["model"]
    if not finished:
        yield "prior, asked for", asked.get("prior", {}).get("name")
        yield "refine, asked for", asked.get("refine", {}).get("what")
        return
    yield "prior", prior["name"] if prior["lam"] is None else f"{prior['name']} {prior['lam']:g}"
    yield "refine", refine["what"] if refine["modes"] is None else f"{refine['what']}, {refine['modes']} mode(s)"
    yield "because", refine["reason"]
    yield "loss", data["loss"]
    yield "held-out, solver", nll["solver"]
    if nll["network"] is not None:
        yield "held-out, network", nll["network"]
    yield "photon noise alone", nll["floor"]


def _lineage(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    source = data["source"]
    yield "source", f"{source['name'] or _UNKNOWN}, sha256 {source['sha256'] or _UNKNOWN}"
    gone = "" if data["store_there"] else " (not there any more)"
    yield "store", f"{data['store']}{gone}"
    yield "store_sha256", data["store_sha256"]
    if data["bundle_sha256"] is not None:
        yield "bundle_sha256", f"{data['bundle_sha256']} ({'made' if data['kind'] == 'training' else 'used'})"
    if data["reconstruction_sha256"] is not None:
        yield "reconstruction_sha256", data["reconstruction_sha256"]


def _plain(value: object) -> str:
    """A value for a terminal; what could steer one is escaped."""
    text = _UNKNOWN if value is None else str(value)
    return text if text.isprintable() else ascii(text)
