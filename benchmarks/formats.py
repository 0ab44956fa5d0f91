"""What becomes of a source stack at each dose: stored quantity, bytes per frame, exactness. Prints a table.

    python benchmarks/formats.py [--frames 256] [--side 128]

Every stack is written as an NPZ, converted, opened and restored; `exact` is what was seen, not what was expected.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.convert import make_counts
from converters.restore import restore
from pipeline.errors import SourceError
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.npz_write import array_member, write_npz
from pipeline.scan.store import open_scan

DOSES = (1e3, 1e5, 1e7)


def spellings(counts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each way in which a writer may have spelled the same counts, and floats that are none."""
    root = np.sqrt(counts.astype(np.float64))
    yield "uint16 counts", counts
    yield "sqrt(counts), float32", root.astype(np.float32)
    yield "sqrt(counts) / float32 constant", root.astype(np.float32) / np.float32(61.7)
    yield "sqrt(counts) x float32 constant", root.astype(np.float32) * np.float32(0.0162)
    yield "sqrt(counts) / float64 constant, float32", (root / 61.712345678).astype(np.float32)
    yield "sqrt(counts) / float64 constant, float64", root / 61.712345678
    gain = np.random.default_rng(1).uniform(0.5, 1.5, (len(counts), 1, 1))
    yield "sqrt(counts) x a random gain per frame, float32", (root * gain).astype(np.float32)
    yield "random float32", np.random.default_rng(2).random(counts.shape, dtype=np.float32)


def row(folder: Path, stack: np.ndarray) -> dict[str, object]:
    """Convert one stack and say what was stored."""
    source, target, back = folder / "scan.npz", folder / "scan.zarr", folder / "back.npz"
    rng = np.random.default_rng(0)
    members = {
        "diffraction": stack,
        "xcoords": rng.uniform(9, 99, len(stack)),
        "ycoords": rng.uniform(9, 99, len(stack)),
    }
    write_npz(source, [array_member(name, values) for name, values in members.items()])
    declared = "nothing"
    try:
        plan = plan_ingest(source, Declaration())
    except SourceError:
        plan = plan_ingest(source, Declaration(contract="data-001"))
        declared = "data-001"
    done = ingest(plan, target, overwrite=True)
    frames = [p for p in done.record.manifest if p.startswith("diffraction/c")]
    legacy = [p for p in done.record.manifest if p.startswith("legacy/diffraction/c")]
    amplitude = open_scan(target)["diffraction"].values
    expected = np.sqrt(stack.astype(np.float64)) if stack.dtype.kind == "u" else stack
    size = sum(done.record.manifest[p].size for p in frames) / len(stack)
    more = sum(done.record.manifest[p].size for p in legacy) / len(stack)
    return {
        "declared": declared,
        "stored": f"{done.stack.dtype.name} {done.stack.quantity}",
        "formula": done.stack.formula.name if done.stack.formula else "-",
        "source_bytes": stack[0].nbytes,
        "bytes": f"{size:,.0f}" + (f" + {more:,.0f} in legacy/" if legacy else ""),
        "opened": bool(np.array_equal(amplitude, expected.astype(np.float32))),
        "restored": not restore(target, back, overwrite=True).cast,
    }


def table(n_frames: int, side: int, doses: tuple[float, ...] = DOSES) -> str:
    """The table as markdown."""
    columns = ("photons per frame", "source stack", "declared", "stored as", "formula", "bytes per frame", "opened",
               "restored")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for photons in doses:
            for label, stack in spellings(make_counts(n_frames, side, photons)):
                r = row(Path(folder), stack)
                exact = ["bit for bit" if r[key] else "**not exact**" for key in ("opened", "restored")]
                lines.append(f"| {photons:.0e} | {label} | {r['declared']} | {r['stored']} | `{r['formula']}` | "
                             f"{r['source_bytes']:,} -> {r['bytes']} | {exact[0]} | {exact[1]} |")  # fmt: skip
    return "\n".join(lines).replace("`-`", "-")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--side", type=int, default=128)
    options = parser.parse_args()
    print(table(options.frames, options.side))


if __name__ == "__main__":
    main()
