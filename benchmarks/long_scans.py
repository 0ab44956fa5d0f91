"""Peak memory and waiting of a reconstruction or a training over the length of the scan, the object being the same.

    python -m benchmarks.long_scans [--frames 16000 40000] [--iterations 3] [--refine | --train]

Scans of 64 x 64 px, recipe `mix`, all over one object of 256 x 256 px; each in a fresh process. A scan of more than
14,336 frames is longer than two windows of the stream. Waiting is a share of the wall time, of all phases and of the
one that waited most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

ALLOWED_MIB, ALLOWED_BYTES_A_FRAME = 10, 64


def run(store: Path, output: Path, *, iterations: int, refine: bool, steps: int | None) -> dict[str, Any]:
    """The report of a reconstruction, or of a training of so many steps, in a process of its own."""
    what = ["pipeline.reconstruct"] if steps is None else ["pipeline.train", "--steps", str(steps)]
    command = [sys.executable, "-m", *what, str(store), "--output", str(output), "--prior", "quadratic", "--quiet"]
    command += ["--refine", "probe,positions" if refine else "none", "--set", "refine.start_passes=0"]
    for setting in ("solver.iterations", "refine.iterations"):
        command += ["--set", f"{setting}={iterations}"]
    command += ["--set", "prior.weight=0.03"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return report


def measure(
    frames: Sequence[int], folder: Path, *, iterations: int, refine: bool, steps: int | None = None
) -> list[dict[str, Any]]:
    """One row for each length: peak in bytes, share of waiting, the phase that waited most, CPU-seconds."""
    rows = []
    for n in frames:
        store = folder / f"{n}.zarr"
        write_store(plan_simulation(replace(recipe_named("mix"), n_frames=n), seed=0), store)
        report = run(store, folder / f"{n}", iterations=iterations, refine=refine, steps=steps)
        rows.append(
            {
                "frames": n,
                "peak_bytes": report["memory_peak_bytes"],
                "wait": report["data_wait_fraction"],
                "worst": max(report["phases"], key=lambda phase: phase["data_wait_fraction"] or 0),
                "cpu_s": sum(phase["cpu_s"] for phase in report["phases"]),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows, each beside what the first one allows it."""
    first, lines = rows[0], [
        "| frames | peak MiB | allowed MiB | waiting | most, in | CPU-s |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        more = ALLOWED_BYTES_A_FRAME * (row["frames"] - first["frames"]) / 2**20
        allowed = first["peak_bytes"] / 2**20 + ALLOWED_MIB + more
        peak = row["peak_bytes"] / 2**20
        worst = f"{row['worst']['data_wait_fraction']:.2%} {row['worst']['name']}"
        lines.append(
            f"| {row['frames']:,} | {peak:.1f} | {allowed:.1f} | {row['wait']:.2%} | {worst} | {row['cpu_s']:.1f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16_000, 40_000])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--refine", action="store_true", help="refine probe, positions and gains too")
    parser.add_argument("--train", action="store_true", help="train, 100 steps")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(
            options.frames, Path(folder), iterations=options.iterations, refine=options.refine,
            steps=100 if options.train else None,
        )  # fmt: skip
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
