"""A reconstruction reported: report.json for programs, report.html for people, one file that needs no other."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

Facts: TypeAlias = Mapping[str, Any]

UNKNOWN: Final = "unknown"
REPORTS: Final = ("report.json", "report.html")
"""What `write_report` writes."""

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("title", "command", "frames", "frame_shape", "frames_invalid", "photons_per_frame", "loss"), ()),
    **dict.fromkeys(
        ("background", "nll_held_out", "nll_floor", "nll_flat", "frames_held_out", "r_factor", "r_factor_floor"), ()
    ),
    **dict.fromkeys(("data_wait_fraction", "memory_peak_bytes", "warnings"), ()),
    "source": ("name", "sha256", "store_sha256"),
    "prior": ("name", "lam"),
    "refine": ("what", "modes", "asked", "reason", "evidence"),
    "refine.evidence": ("nll", "floor", "counts_per_pixel"),
    "choice": ("prior", "nll", "iterations"),
    "metrics": ("role", "box_px", "object", "flat"),
    "shift_px": ("median", "max"),
    "gain": ("min", "max"),
    "phases": ("name", "passes", "cpu_s", "wall_s", "data_wait_fraction"),
    "environment": ("python", "numpy", "torch", "ptychozarr", "threads", "cpu"),
}
"""Dotted key -> the keys of the mapping, or of each mapping of the list, that stands there."""

_LOSSES: Final = {
    "poisson": "Poisson likelihood",
    "poisson-background": "Poisson likelihood with the background as light",
    "amplitude": "amplitude loss (the photon scale is unknown)",
}
_PRIORS: Final = {"tv": "total variation prior", "quadratic": "quadratic smoothness prior", "none": "no prior"}
_METRICS: Final = {
    "complex_nrmse": "complex error, rms relative to the stored object",
    "amplitude_mae": "amplitude, mean absolute error",
    "phase_mae_rad": "phase, mean absolute error, rad",
    "amplitude_ssim": "amplitude, structural similarity",
    "phase_ssim": "phase, structural similarity",
    "amplitude_data_range": "amplitude, range of the stored object",
    "phase_data_range_rad": "phase, range of the stored object, rad",
}
_REFINED: Final = {
    "none": "Probe and positions are those of the store.",
    "probe": "The probe was refined; the positions are those of the store.",
    "probe,positions": "Probe, positions and the light of each frame were refined.",
}


def write_report(folder: Path, facts: Facts, pictures: Mapping[str, Path]) -> None:
    """Write report.json and report.html into a folder, over what was there; nothing where a fact is missing or NaN.

    Any value may be null, which the page shows as "unknown"; no key may be missing.

    ====================  =============================================================================================
    title, command        str: what was done, and the command that does it again
    source                {name, sha256, store_sha256} of the file and of the store made from it
    frames, frame_shape   int, [N, N]; frames_invalid: int
    photons_per_frame     float
    loss, background      "poisson", "poisson-background" or "amplitude"; float, photons per pixel
    prior                 {name, lam}
    refine                {what, modes, asked, reason, evidence: {nll, floor, counts_per_pixel}}
    choice                [{prior, nll, iterations}]: each candidate with its loss on held-out frames
    nll_held_out          float, per good pixel; nll_floor, nll_flat: float, of photon noise
                          alone and of the flat object; frames_held_out: int
    r_factor              float; r_factor_floor: float, of photon noise alone
    metrics               {role, box_px: [[y0, y1], [x0, x1]], object: {name: float}, flat: {name: float}}
    shift_px, gain        {median, max} pixels; {min, max} of the mean
    phases                [{name, passes, cpu_s, wall_s, data_wait_fraction}]
    data_wait_fraction    float, share of the wall time; memory_peak_bytes: int
    environment           {python, numpy, torch, ptychozarr, threads, cpu}
    warnings              [str]
    ====================  =============================================================================================

    Where there is a network, these may be there besides:

    ====================  =============================================================================================
    metrics_solver        as metrics, of the solver alone; metrics is then the network's
    nll_network           float, per good pixel of the held-out frames
    bundle_sha256         str: of the bundle that was made, or used
    bundle                {store_sha256, source: {name, sha256}}: what a bundle that was used was trained on
    fit                   {model, steps, batch_size, order_sha256, loss_first, loss_last} of a training
    ====================  =============================================================================================

    Parameters
    ----------
    facts : values that JSON can hold, with the keys above; others are kept in report.json.
    pictures : caption -> PNG file, which the page will contain.

    Raises
    ------
    KeyError
        Keys are missing; all are named.
    ValueError
        A number is NaN or infinite.
    """
    if missing := list(_missing(facts)):
        raise KeyError(f"the facts of a report lack {', '.join(missing)}")
    as_json = json.dumps(facts, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    page = _page(facts, pictures, as_json)
    for name, text in zip(REPORTS, (as_json, page), strict=True):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _missing(facts: Facts) -> Iterable[str]:
    """Dotted names of keys that are not there, whatever their values."""
    for dotted, keys in _KEYS.items():
        found: Any = {"": facts}
        for part in ("", *dotted.split(".")):
            if found is not None and part not in found:
                yield dotted
                break
            found = None if found is None else found[part]
        else:
            for item in found if isinstance(found, list | tuple) else [found] if keys else []:
                yield from (f"{dotted}.{key}" for key in keys if item is not None and key not in item)


def _page(facts: Facts, pictures: Mapping[str, Path], as_json: str) -> str:
    title = escape(_text(facts["title"]))
    sections = (
        _section("Key figures", _pairs(_key_figures(facts))),
        _section("Refinement", _refinement(facts)),
        _section("Prior", _choice(facts)),
        *([_section("Training", _pairs(_training(facts["fit"])))] if facts.get("fit") else []),
        _section("Beside the stored object", _metrics(facts)),
        _section("Time", _timings(facts)),
        _section("Environment", _pairs(_environment(facts))),
        _section("Lineage", _lineage(facts)),
        _section("Run it again", f"<pre>{escape(_text(facts['command']))}</pre>\n"),
    )
    body = (
        f"<h1>{title}</h1>\n<p class=lead>{escape(' '.join(_summary(facts)))}</p>\n{_warnings(facts)}",
        *(_picture(caption, path) for caption, path in pictures.items()),
        f"<div class=facts>\n{''.join(sections)}</div>\n",
        f"<details>\n<summary>All facts (report.json)</summary>\n<pre>{escape(as_json)}</pre>\n</details>\n",
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _summary(facts: Facts) -> Iterable[str]:
    """What a reader should know who reads no further, in sentences."""
    held_out, metrics, shift = facts["nll_held_out"], facts["metrics"], facts["shift_px"]
    photons = facts["photons_per_frame"]
    light = "of an unknown number of photons" if photons is None else f"of {_number(photons)} photons on average"
    yield (
        f"{_number(facts['frames'])} frames of {_sides(facts['frame_shape'])} pixels, {light}, were reconstructed "
        f"({_prior(facts['prior'])}, {_loss(facts)})."
    )
    yield _refined_because(facts)
    if shift is not None:
        yield f"Positions moved by {_number(shift['median'])} px in the median, {_number(shift['max'])} px at most."
    if held_out is not None:
        there = f"On {_number(facts['frames_held_out'])} frames that the solve did not see"
        yield f"{there} the loss per pixel is {_beside_noise(held_out, facts['nll_floor'])}."
        if facts.get("nll_network") is not None:
            yield f"With the network of the bundle it is {_beside_noise(facts['nll_network'], facts['nll_floor'])}."
    yield f"The R-factor is {_beside_noise(facts['r_factor'], facts['r_factor_floor'])}."
    if fit := facts.get("fit"):
        trained = f"A network ({_text(fit.get('model'))}) was then trained for {_number(fit.get('steps'))} steps"
        yield f"{trained} on halves of these frames, without any truth."
    if metrics is not None and _of(metrics["object"], "complex_nrmse") is not None:
        error, flat = metrics["object"]["complex_nrmse"], _of(metrics["flat"], "complex_nrmse")
        solver = _of(_of(facts.get("metrics_solver"), "object"), "complex_nrmse")
        own = "" if solver is None else f"with the network, {_number(solver)} with the solver alone, "
        yield (
            f"Against the stored object ({_text(metrics['role'])}) the complex error is {_number(error)} {own}".rstrip()
            + f"{'' if own else ','} that of a flat object {_number(flat)}."
        )


def _key_figures(facts: Facts) -> Iterable[tuple[str, str]]:
    shift, gain, peak = facts["shift_px"], facts["gain"], facts["memory_peak_bytes"]
    held_out = f"Loss per pixel on {_number(facts['frames_held_out'])} held-out frames"
    yield "Frames", f"{_number(facts['frames'])} of {_sides(facts['frame_shape'])} pixels"
    yield "Invalid frames, left out", _number(facts["frames_invalid"])
    yield "Photons per frame", _number(facts["photons_per_frame"])
    yield "Loss", _loss(facts)
    yield "Background in the loss", f"{_number(facts['background'])} photons per pixel"
    yield "Prior", _prior(facts["prior"])
    yield "Refined", _words(_of(facts["refine"], "what"))
    yield "Probe modes", _number(_of(facts["refine"], "modes"))
    yield held_out, _beside_noise(facts["nll_held_out"], facts["nll_floor"])
    if "nll_network" in facts:
        yield "The same with the network", _beside_noise(facts["nll_network"], facts["nll_floor"])
    yield "R-factor", _beside_noise(facts["r_factor"], facts["r_factor_floor"])
    if shift is not None:
        yield "Position shift", f"median {_number(shift['median'])} px, largest {_number(shift['max'])} px"
    if gain is not None:
        yield "Light of a frame over the mean", f"{_number(gain['min'])} to {_number(gain['max'])}"
    yield "Waiting for data, share of wall time", _share(facts["data_wait_fraction"])
    yield "Peak memory", UNKNOWN if peak is None else f"{peak / 2**20:,.0f} MiB"


def _refinement(facts: Facts) -> str:
    asked, evidence = _of(facts["refine"], "asked"), _of(facts["refine"], "evidence")
    by = "Evidence was to decide." if asked == "auto" else f"Asked for: {_words(asked)}."
    words = _paragraph(f"{by} {_refined_because(facts)}")
    if evidence is None:
        return words
    return words + _pairs(
        [
            ("Held-out loss per pixel with the stored probe", _beside_noise(evidence["nll"], evidence["floor"])),
            ("Mean counts per good pixel", _number(evidence["counts_per_pixel"])),
        ]
    )


def _choice(facts: Facts) -> str:
    trials = facts["choice"] or []
    if not trials:
        return _paragraph(f"Used: {_prior(facts['prior'])}. No candidates were compared.")
    known = [trial["nll"] for trial in trials if trial["nll"] is not None]
    least = next((i for i, trial in enumerate(trials) if known and trial["nll"] == min(known)), None)
    rows = [
        (_text(trial["prior"]), _number(trial["nll"], "#.4g"), _number(trial["iterations"]), "least" * (i == least))
        for i, trial in enumerate(trials)
    ]
    words = (
        f"Used: {_prior(facts['prior'])}. Each candidate was solved without the held-out frames, then had to predict "
        f"them. Photon noise alone would leave a loss of {_number(facts['nll_floor'])}; the flat object has "
        f"{_number(facts['nll_flat'])}."
    )
    return _paragraph(words) + _table(("candidate", "held-out loss per pixel", "iterations", ""), rows, strong=least)


def _metrics(facts: Facts) -> str:
    metrics = facts["metrics"]
    if metrics is None:
        return _paragraph("There is no stored object to compare with.")
    found, flat = metrics["object"] or {}, metrics["flat"] or {}
    rows, columns = metrics["box_px"] or ((None, None), (None, None))
    words = (
        f"The role of the stored object: {_text(metrics['role'])}. Compared in rows {_number(rows[0])} to "
        f"{_number(rows[1])} and columns {_number(columns[0])} to {_number(columns[1])}, ends not included, after one "
        "complex factor was removed, no shift and no phase ramp. The flat object is the same number everywhere."
    )
    columns = {"reconstruction": found, "flat object": flat}
    if "metrics_solver" in facts:
        solver = _of(facts["metrics_solver"], "object") or {}
        columns = {"network": found, "solver alone": solver, "flat object": flat}
    cells = [(_METRICS.get(name, name), *(_number(values.get(name)) for values in columns.values())) for name in found]
    return _paragraph(words) + _table(("", *columns), cells)


def _training(fit: Facts) -> Iterable[tuple[str, str]]:
    yield "Model", _text(fit.get("model"))
    yield "Steps", _number(fit.get("steps"))
    yield "Frames in a batch", _number(fit.get("batch_size"))
    yield "Training loss, first steps", _number(fit.get("loss_first"))
    yield "Training loss, last steps", _number(fit.get("loss_last"))
    yield "Order of the batches, SHA-256", _text(fit.get("order_sha256"))


def _timings(facts: Facts) -> str:
    phases = facts["phases"] or []
    rows = [
        (
            _text(phase["name"]),
            _number(phase["passes"]),
            _number(phase["cpu_s"], ",.1f"),
            _number(phase["wall_s"], ",.1f"),
            _share(phase["data_wait_fraction"]),
        )
        for phase in phases
    ]
    sums = {key: [phase[key] for phase in phases] for key in ("passes", "cpu_s", "wall_s")}
    passes, cpu_s, wall_s = (None if None in values else sum(values) for values in sums.values())
    whole = ("all", _number(passes), _number(cpu_s, ",.1f"), _number(wall_s, ",.1f"))
    rows.append((*whole, _share(facts["data_wait_fraction"])))
    head = ("phase", "passes or steps" if facts.get("fit") else "passes", "CPU, s", "wall clock, s", "waiting for data")
    return _table(head, rows, strong=len(rows) - 1)


def _lineage(facts: Facts) -> str:
    source = facts["source"] or {}
    steps = [
        ("Source file", _text(source.get("name")), f"sha256 {_text(source.get('sha256'))}"),
        ("Store", "made from the source file", f"store_sha256 {_text(source.get('store_sha256'))}"),
    ]
    bundle, used = f"bundle_sha256 {_text(facts.get('bundle_sha256'))}", facts.get("bundle")
    if facts.get("fit"):
        steps.append(("This training", "made from the store by the command below", ""))
        steps.append(("Bundle", "the trained network, wts.h5.zip", bundle))
    else:
        if used is not None:
            trained, behind = used.get("source") or {}, f"store_sha256 {_text(used.get('store_sha256'))}"
            steps.append(("Bundle", f"the network used, trained on {_text(trained.get('name'))}", bundle))
            steps.append(("Behind the bundle", f"its file: sha256 {_text(trained.get('sha256'))}", behind))
        steps.append(("This reconstruction", "made from the store by the command below", ""))
    items = (
        f"<li><b>{escape(name)}</b>: {escape(text)}<br><code>{escape(digest)}</code></li>\n"
        for name, text, digest in steps
    )
    return f"<ol>\n{''.join(items)}</ol>\n"


def _environment(facts: Facts) -> Iterable[tuple[str, str]]:
    for name, value in (facts["environment"] or {}).items():
        yield name, _text(value)


def _warnings(facts: Facts) -> str:
    items = "".join(f"<li>{escape(_text(text))}</li>\n" for text in facts["warnings"] or [])
    return f"<aside>\n<h2>Warnings</h2>\n<ul>\n{items}</ul>\n</aside>\n" if items else ""


def _picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>\n<div class=wide>{image}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def _section(name: str, body: str) -> str:
    return f"<section>\n<h2>{escape(name)}</h2>\n{body}</section>\n"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>\n" for name, text in rows)
    return f"<table>\n{''.join(cells)}</table>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, strong: int | None = None) -> str:
    """A table of numbers whose first column names the row; row `strong` stands out."""
    lines = [f"<tr>{''.join(f'<th scope=col>{escape(cell)}</th>' for cell in head)}</tr>\n"]
    for i, (name, *cells) in enumerate(rows):
        row = f"<th scope=row>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr{' class=strong' * (i == strong)}>{row}</tr>\n")
    return f"<div class=wide><table class=numbers>\n{''.join(lines)}</table></div>\n"


def _of(part: Facts | None, key: str) -> Any:
    return None if part is None else part.get(key)


def _text(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def _words(what: Any) -> str:
    """A list of names with commas as people write it."""
    return _text(what).replace(",", " and ")


def _number(value: float | None, form: str | None = None) -> str:
    """Four digits, all of them and commas in whole and large numbers."""
    if value is None:
        return UNKNOWN
    return format(value, form or (",.0f" if isinstance(value, int) or 1e4 <= abs(value) < 1e15 else ".4g"))


def _share(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.2g} %"


def _sides(shape: Sequence[int] | None) -> str:
    return UNKNOWN if shape is None else " × ".join(map(str, shape))


def _loss(facts: Facts) -> str:
    return _LOSSES.get(facts["loss"], _text(facts["loss"]))


def _prior(prior: Facts | None) -> str:
    kind, weight = _of(prior, "name"), _of(prior, "lam")
    name = _PRIORS.get(kind, f"prior {_text(kind)}")
    return name if kind == "none" else f"{name} of weight {_number(weight)}"


def _refined(facts: Facts) -> str:
    return _REFINED.get(_of(facts["refine"], "what"), "Whether anything was refined is unknown.")


def _refined_because(facts: Facts) -> str:
    """What was refined, and why or why not, in a sentence."""
    return f"{_refined(facts).removesuffix('.')}: {_text(_of(facts['refine'], 'reason'))}."


def _beside_noise(found: float | None, floor: float | None) -> str:
    """A number and how far it lies above what photon noise alone would leave."""
    if found is None or floor is None or floor <= 0:
        return f"{_number(found)} (photon noise alone: {_number(floor)})"
    ratio = found / floor
    above = f"{ratio:.3g} times" if ratio >= 2 else f"{_share(abs(ratio - 1))} {'above' if ratio >= 1 else 'below'}"
    return f"{_number(found)}, {above} the {_number(floor)} of photon noise alone"


_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #dee2e7; --tint: #f0f2f5;
  --warn: #fff4e0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --line: #343a42; --tint: #1e2329; --warn: #3a2c10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; font-weight: 500; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; font-weight: 500; margin: 0 0 .5rem; }
p, ol, ul { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.08rem; max-width: 52rem; }
figure { margin: 1.75rem 0; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; font-weight: 400; padding: .32rem 1.5rem .32rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); }
.numbers td, .numbers th[scope=col]:not(:first-child) { text-align: right; white-space: nowrap; }
.strong > * { font-weight: 600; color: var(--ink); }
pre, code { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--tint); border-radius: 6px; padding: .8rem 1rem; white-space: pre-wrap; }
aside { background: var(--warn); border-radius: 6px; padding: .1rem 1.25rem .6rem; margin: 1.25rem 0; }
aside h2 { margin-top: .75rem; }
.facts { columns: 2 32rem; column-gap: 3.5rem; margin-top: 2.5rem; }
section { break-inside: avoid; padding-bottom: 2.25rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 45rem) { img { width: 60rem; } th, td { padding-right: .9rem; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f4f4f4;
    --warn: #fff; }
  html, body { font-size: 10pt; } main { max-width: none; padding: 0; }
  img { width: auto; max-width: 100%; max-height: 22cm; } figure { margin: .5rem 0; break-inside: avoid; }
  .wide { overflow: visible; } section, aside { break-inside: avoid; } details { display: none; } }
"""
