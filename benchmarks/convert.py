"""Conversion against `np.load` + `to_zarr`: CPU, wall and memory, side by side in one run.

    python benchmarks/convert.py [--frames 4096] [--side 128] [--repeats 3] [--folder DIR]

Three programs are run on the same files, each run in a fresh interpreter, in turn:

* `ours`: `converters.convert.convert`, verification included;
* `bare`: `numpy.load` and `Dataset.to_zarr` with their defaults;
* `assured`: the same two calls given equal assurance: SHA-256 of source and of every stored file, the store read
  back and compared, files and folders flushed to disk.

Time is what the work costs after the imports; CPU counts all threads. The least of the repeats is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

PROGRAMS = ("ours", "bare", "assured")

_CHILD = """
import hashlib, json, os, shutil, sys, time
import numpy as np, xarray as xr, zarr, dask.array
sys.path.insert(0, {root!r})
from pathlib import Path
from converters.convert import ConvertConfig, convert
from pipeline.scan.declaration import Declaration
source, target, program, quantity = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] or None

def bare():
    with np.load(source) as npz:
        n = len(npz["xcoords"])
        arrays = {{name: npz[name] for name in npz.files}}
    variables = {{}}
    for name, array in arrays.items():
        first = "frame" if array.shape[:1] == (n,) else f"{{name}}_0"
        variables[name] = ((first, *(f"{{name}}_{{i}}" for i in range(1, array.ndim))), array)
    xr.Dataset(variables).to_zarr(target)
    return arrays

def assured():
    source_sha = hashlib.file_digest(source.open("rb"), "sha256").hexdigest()
    arrays = bare()
    back = xr.open_zarr(target, chunks=None)
    for name, array in arrays.items():
        assert np.array_equal(back[name].values, array)
    digests = {{}}
    for folder, _, files in os.walk(target, topdown=False):
        for name in [*files, "."]:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(handle); os.close(handle)
        for name in files:
            path = os.path.join(folder, name)
            digests[path] = hashlib.file_digest(open(path, "rb"), "sha256").hexdigest()
    (target / "digests.json").write_text(json.dumps([source_sha, digests]))

def ours():
    convert(ConvertConfig(source=source, target=target, declaration=Declaration(quantity=quantity)))

import warnings; warnings.simplefilter("ignore")
xr.Dataset({{"warm": ("x", np.zeros(3))}}).to_zarr(str(target) + ".warm"); shutil.rmtree(str(target) + ".warm")
def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
before = status("VmRSS")
wall, cpu = time.perf_counter(), time.process_time()
{{"ours": ours, "bare": bare, "assured": assured}}[program]()
result = dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu,
              peak_mib=(status("VmHWM") - before) / 1024,
              stored=sum(p.stat().st_size for p in target.rglob("*") if p.is_file()))
shutil.rmtree(target)
print(json.dumps(result))
"""


def make_counts(n_frames: int, side: int, photons: float, seed: int = 0) -> np.ndarray:
    """Poisson counts of far-field frames of a soft disc on a random object: (n, side, side) uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    aperture = 1 / (1 + np.exp((np.hypot(y, x) - side / 6) / 2))
    phase = rng.normal(size=(64, side, side))
    frames = np.abs(np.fft.fftshift(np.fft.fft2(aperture * np.exp(0.5j * phase)), axes=(1, 2))) ** 2
    frames *= photons / frames.sum(axis=(1, 2), keepdims=True)
    counts = np.empty((n_frames, side, side), np.uint16)
    for start in range(0, n_frames, 64):
        counts[start : start + 64] = rng.poisson(frames[: min(64, n_frames - start)])
    return counts


def sources(folder: Path, n_frames: int, side: int, photons: float) -> Iterator[tuple[str, Path, str]]:
    """Label, file and the quantity to declare ("" for none) of each benchmark file."""
    counts = make_counts(n_frames, side, photons)
    rng = np.random.default_rng(1)
    spellings: dict[str, tuple[Callable[[], np.ndarray], str]] = {
        "uint16 counts": (lambda: counts, ""),
        "float32 sqrt(counts)": (lambda: np.sqrt(counts, dtype=np.float32), ""),
        "float32 other": (
            lambda: np.sqrt(counts, dtype=np.float32) * rng.uniform(0.5, 1.5, (n_frames, 1, 1)).astype(np.float32),
            "amplitude",
        ),
    }
    for label, (make, quantity) in spellings.items():
        members = {
            "diffraction": make(),
            "xcoords": rng.uniform(40, 200, n_frames),
            "ycoords": rng.uniform(40, 200, n_frames),
            "probeGuess": np.ones((side, side), np.complex64),
        }
        for kind, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
            path = folder / f"{label.replace(' ', '-')}-{kind}.npz"
            save(path, **members)
            yield f"{label}, {kind}", path, quantity


def run(program: str, source: Path, target: Path, quantity: str) -> dict[str, float]:
    """One run of one program in a fresh interpreter: wall and CPU seconds, peak MiB over the imports, stored bytes."""
    script = _CHILD.format(root=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(target), program, quantity],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, *, n_frames: int, side: int, photons: float, repeats: int) -> list[dict[str, object]]:
    """One row per file: seconds, ratios to ours, peak memory and sizes."""
    rows = []
    for label, source, quantity in sources(folder, n_frames, side, photons):
        best: dict[str, dict[str, float]] = {}
        for _ in range(repeats):
            for program in PROGRAMS:  # in turn, so that a busy moment falls on all of them
                found = run(program, source, folder / "out.zarr", quantity)
                kept = best.setdefault(program, found)
                best[program] = {key: min(kept[key], found[key]) for key in found}
        rows.append({"file": label, "source_bytes": source.stat().st_size, **best})
        source.unlink()
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--photons", type=float, default=1e5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(
            Path(folder), n_frames=options.frames, side=options.side, photons=options.photons, repeats=options.repeats
        )
    print(
        f"{options.frames} frames of {options.side} x {options.side}, {options.photons:g} photons a frame; "
        f"best of {options.repeats}; ratios below 1: ours needs less"
    )
    print(
        f"{'file':<32}{'MB in':>7} | {'ours CPU s':>10}{'wall s':>8}{'peak MiB':>9}{'MB out':>8} | "
        f"{'CPU/bare':>9}{'wall/bare':>10} | {'CPU/assured':>12}{'wall/assured':>13}{'MB out':>8}"
    )
    for row in rows:
        ours, bare, assured = (row[program] for program in PROGRAMS)
        print(
            f"{row['file']:<32}{row['source_bytes'] / 1e6:7.0f} | {ours['cpu']:10.2f}{ours['wall']:8.2f}"
            f"{ours['peak_mib']:9.0f}{ours['stored'] / 1e6:8.1f} | {ours['cpu'] / bare['cpu']:9.2f}"
            f"{ours['wall'] / bare['wall']:10.2f} | {ours['cpu'] / assured['cpu']:12.2f}"
            f"{ours['wall'] / assured['wall']:13.2f}{assured['stored'] / 1e6:8.1f}"
        )


if __name__ == "__main__":
    main()
