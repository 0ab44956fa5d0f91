"""Peak memory of a conversion, for files of several sizes, also larger than RAM.

    python benchmarks/memory.py [--gb 0.1 1 26] [--kind counts|root|yxf] [--folder DIR]

Each file repeats one block of frames of 128 x 128 at 1e5 photons until it has the size; the conversion runs in a fresh
interpreter, and what is printed is its high-water mark above the interpreter with its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.convert import make_counts
from pipeline.scan.npy import npy_prefix, raw_bytes
from pipeline.scan.npz_write import OutMember, array_member, write_npz

_CHILD = """
import json, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from converters.convert import ConvertConfig, convert
from pipeline.scan.declaration import Declaration
import dask.array, xarray, zarr
def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
Path("/proc/self/clear_refs").write_text("5")
before, wall, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
done = convert(ConvertConfig(source=Path(sys.argv[1]), target=Path(sys.argv[2]), declaration=Declaration()))
print(json.dumps(dict(peak_mib=(status("VmHWM") - before) / 1024, wall=time.perf_counter() - wall,
                      cpu=time.process_time() - cpu, frames=done.plan.layout.roles.n_frames,
                      stored=done.record.stored_bytes)))
"""


def write_source(path: Path, n_bytes: float, kind: str) -> None:
    """An NPZ of about `n_bytes`, written in bounded memory."""
    counts = make_counts(64, 128, 1e5)
    block = np.sqrt(counts, dtype=np.float32) if kind == "root" else counts
    n_blocks = max(1, int(n_bytes // block.nbytes))
    n_frames = 64 * n_blocks
    shape = (128, 128, n_frames) if kind == "yxf" else (n_frames, 128, 128)

    def blocks() -> Iterator[memoryview]:
        if kind == "yxf":  # a row of detector pixels at a time, all frames of it
            yield from (raw_bytes(np.tile(counts[:, row].transpose(1, 0), n_blocks)) for row in range(128))
        else:
            yield from (raw_bytes(block) for _ in range(n_blocks))

    places = np.random.default_rng(0).uniform(60, 900, (2, n_frames))
    stack = OutMember(name="diffraction", prefix=npy_prefix(shape, block.dtype), blocks=blocks(), deflated=False)
    write_npz(path, [array_member("xcoords", places[0]), array_member("ycoords", places[1]), stack])


def measure(folder: Path, n_bytes: float, kind: str) -> dict[str, float]:
    """Convert one such file; peak MiB, seconds, frames, stored bytes."""
    source = folder / f"{kind}.npz"
    write_source(source, n_bytes, kind)
    script = _CHILD.format(root=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(folder / f"{kind}.zarr")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"source_bytes": source.stat().st_size, **json.loads(done.stdout)}


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--kind", choices=["counts", "root", "yxf"], default="counts")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    for gb in options.gb:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(Path(folder), gb * 1e9, options.kind)
        print(f"{options.kind:<7}{found['source_bytes'] / 1e9:7.2f} GB, {found['frames']:>8} frames: peak "
              f"{found['peak_mib']:6.0f} MiB, {found['cpu']:7.1f} CPU s, {found['wall']:7.1f} s, stored "
              f"{found['stored'] / 1e9:.2f} GB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
