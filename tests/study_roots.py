"""Small roots of a study: a base scan, a design of two doses, and what the old system would have left of them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.simulate.recipe import RECIPES
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import Dialect, write_legacy
from pipeline.study import commands
from tests.guards import run_main

FRAMES = 90
SIDE = 32
TINY = {"fit.steps": 3, "network.width": 4, "solver.iterations": 3, "solver.start_iterations": 1,
        "prior.name": "quadratic", "prior.weight": 0.03, "stream.batch_size": 4}  # fmt: skip
"""Settings of the smallest training that is a real one."""


def write_base(path: Path) -> Path:
    """A scan of 90 frames of 32 px, 45 on each side of the middle or about that, as a legacy NPZ."""
    recipe = replace(RECIPES["demo"], n_frames=FRAMES, object_side=80, frame_side=SIDE, probe_modes=1)
    write_legacy(plan_simulation(recipe, seed=3), path, Dialect(key="diff3d"))
    return path


def write_design(path: Path, **tables: Any) -> Path:
    """A design of the doses 1e3 and 1e4 with the smallest trainings, and `tables` in place of its own."""
    document = {"doses": [1000, 10000], "training": {"settings": TINY}, **tables}
    path.write_text("\n".join(_toml(document)) + "\n")
    return path


def _toml(table: dict[str, Any], place: str = "") -> list[str]:
    values = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    lines = [f"[{place}]", *values] if place else values
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{place}.{key}" if place else key)
    return lines


def study(stage: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a stage inside this process."""
    return run_main(getattr(commands, stage), *arguments)


def generated(folder: Path, *more: str, **tables: Any) -> Path:
    """A phase C root of the small base and design."""
    base = folder / "base.npz" if (folder / "base.npz").exists() else write_base(folder / "base.npz")
    design = write_design(folder / "design.toml", **tables)
    done = study("generate", "--base-npz", base, "--output-root", folder / "c", "--design", design, *more)
    assert done.returncode == 0, done.stderr
    return folder / "c"


def viewed(folder: Path, *more: str, **tables: Any) -> tuple[Path, Path]:
    """Roots of phases C and D."""
    root = generated(folder, **tables)
    done = study("overlap", "--phase-c-root", root, "--output-root", folder / "d", *more)
    assert done.returncode == 0, done.stderr
    return root, folder / "d"


def train(folder: Path, *more: str | Path, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Train jobs of the roots in a folder."""
    return study(
        "train", "--phase-c-root", root or folder / "c", "--phase-d-root", folder / "d", "--artifact-root",
        folder / "e", *more,
    )  # fmt: skip


def as_the_old_system(root: Path, target: Path, *, key: str, exact: bool = True) -> Path:
    """The legacy files of a phase C root, spelled as the old system left them.

    The stack lies under `key` alone, `Y` holds the one patch that a known defect left, metadata are pickled. Not
    `exact`: amplitudes are no square roots of counts any more, so that nothing but the contract tells what they are.
    """
    for file in root.glob("dose_*/patched_*.npz"):
        with np.load(file) as source:
            members = dict(source)
        stack = members.pop("diffraction")
        noise = np.random.default_rng(1).uniform(0.99, 1.01, stack.shape)
        members[key] = stack if exact else (stack * noise).astype(np.float32)
        members["Y"] = members["Y"][:1, :, :, np.newaxis]
        members["coords_start_offsets"] = members["coords_start_relative"] = np.zeros((1, 1, 2, 1))
        members["_metadata"] = np.array(str(members["_metadata"]), dtype=object)
        place = target / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place, **members)
    return target


def hashes_in(document: Any) -> list[tuple[str, Any]]:
    """Every digest in a manifest, but those that its times decide."""
    found = []
    if isinstance(document, dict):
        for key, value in document.items():
            if "sha256" in key and key != "manifest_sha256" and not isinstance(value, dict):
                found.append((key, value))
            else:
                found += hashes_in(value)
    elif isinstance(document, list):
        for value in document:
            found += hashes_in(value)
    return found
