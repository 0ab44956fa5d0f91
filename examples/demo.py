"""A legacy NPZ there and back and on to its object: inspect, convert, verify, damage a copy, restore, reconstruct.

    python examples/demo.py [--npz FILE] [--output demo-out] [-- options for npz2zarr]

With --npz the same is done with a file of yours. Each command is printed as it would be typed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path


def say(text: str) -> None:
    """A heading between commands."""
    print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def run(*arguments: str | Path, expect: int = 0) -> None:
    """Run `python -m ...`, show it and what it prints, and stop the demo unless it exits as expected."""
    words = [str(a) for a in arguments]
    print("$ python -m " + " ".join(words), flush=True)
    done = subprocess.run([sys.executable, "-m", *words], check=False)
    if done.returncode != expect:
        raise SystemExit(done.returncode)


def flip_one_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def compare(one: Path, two: Path) -> None:
    """Whether two NPZ files are the same bytes, or at least each of their members; stops the demo if not."""
    if one.read_bytes() == two.read_bytes():
        print(f"{one.name} and {two.name} are the same {one.stat().st_size:,} bytes")
        return
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(two) as second:
        if first.namelist() != second.namelist():
            raise SystemExit(f"{one.name} and {two.name} hold different members")
        for name in first.namelist():
            if first.read(name) != second.read(name):
                raise SystemExit(f"{name} differs")
        print(f"all {len(first.namelist())} members are the same bytes (the zip files around them differ)")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("options", nargs="*", help="options for inspect and npz2zarr, after --")
    told = parser.parse_args()
    began = time.monotonic()
    source = told.npz or told.output / "scan.npz"
    if told.npz is not None and not told.npz.is_file():
        raise SystemExit(f"error: {told.npz}: no such file")
    store = told.output / f"{source.stem}.zarr"
    damaged = told.output / f"{source.stem}-damaged.zarr"
    back = told.output / f"{source.stem}-back.npz"
    found = told.output / f"{source.stem}-object"
    told.output.mkdir(parents=True, exist_ok=True)
    mine = [] if told.npz else [source]
    for name in ("one.zarr", "training", "other.zarr", "other-object"):
        shutil.rmtree(told.output / name, ignore_errors=True)
    for made in (store, damaged, back, found, *mine):  # what an earlier demo left, and no more
        shutil.rmtree(made, ignore_errors=True)
        made.unlink(missing_ok=True)

    if told.npz is None:
        say("A legacy file as a simulator leaves it: scaled amplitudes, frames on the last axis")
        run("pipeline.simulate", "--output", source, "--recipe", "demo", "--quantity", "scaled-amplitude",
            "--axes", "yxf")  # fmt: skip
    say("What is it, and what would it become?")
    run("converters.inspect", source, *told.options)
    say("Convert it: every member accounted for, read back before it appears")
    run("converters.npz2zarr", source, store, *told.options)
    say("Is the store what was written?")
    run("pipeline.verify", store)
    say("Flip one bit in a copy")
    shutil.copytree(store, damaged)
    flip_one_byte(max((damaged / "diffraction").glob("c.*"), key=lambda p: p.stat().st_size))
    run("pipeline.verify", damaged, expect=6)
    say("Back to the legacy file")
    run("converters.zarr2npz", store, back)
    compare(source, back)
    say("From photons to the object: a prior chosen on held-out frames, then all frames")
    run("pipeline.reconstruct", store, "--output", found, "--iterations", "20", "--quiet")
    say("Train a network on one object, from photons alone: 300 steps, 10 passes for each weight of a TV prior")
    quick = ("--prior", "tv", "--set", "prior.choice_iterations=10", "--quiet")
    run("pipeline.simulate", "--output", told.output / "one.zarr", "--recipe", "mix")
    run("pipeline.train", told.output / "one.zarr", "--output", told.output / "training", "--steps", "300", *quick)
    say("Use it on another object, beside the solver")
    run("pipeline.simulate", "--output", told.output / "other.zarr", "--recipe", "mix-test")
    bundle = told.output / "training" / "wts.h5.zip"
    seen = told.output / "other-object"
    run("pipeline.reconstruct", told.output / "other.zarr", "--bundle", bundle, "--output", seen, *quick)
    run("pipeline.verify", bundle)
    say("What is here (a list reads metadata only, so it cannot see the flipped bit)")
    run("catalogs", "list", told.output)
    took = time.monotonic() - began
    print(f"\nThe demo took {took:.0f} s; look at {found}/report.png and {seen}/network.png")


if __name__ == "__main__":
    main()
