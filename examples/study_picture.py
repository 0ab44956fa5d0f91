"""What a study varies, in one picture: a frame at each dose, and where the frames of each view lie.

`python examples/study_picture.py PHASE_C_ROOT PHASE_D_ROOT --output FILE.png`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle

BLUE, ORANGE, SOFT = "#0969da", "#d97706", "#8c959f"


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phase_c_root", type=Path)
    parser.add_argument("phase_d_root", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    entries = sorted(json.loads((options.phase_c_root / "run_manifest.json").read_text()).values(), key=_dose)
    views = json.loads((options.phase_d_root / "overlap_manifest.json").read_text())["views"]
    mine = [view for view in views if view["dose"] == int(entries[0]["dose"])]
    columns = max(len(entries), 1 + len(mine))
    figure, axes = plt.subplots(2, columns, figsize=(4.1 * columns, 8.6), layout="constrained")
    for axis in axes.flat[len(entries) : columns]:
        axis.set_axis_off()
    draw_doses(axes[0], options.phase_c_root, entries)
    draw_views(axes[1], options, entries[0], mine)
    figure.savefig(options.output, dpi=110)


def _dose(entry: dict) -> float:
    return entry["dose"]


def draw_doses(axes: np.ndarray, root: Path, entries: list[dict]) -> None:
    """The brightest frame of the lowest dose, at each dose, on one log scale."""
    frames = [xr.open_zarr(root / entry["train"]).diffraction for entry in entries]
    index = int(np.argmax(frames[0].sum(("detector_y", "detector_x")).values))
    scale = LogNorm(0.7, float(frames[-1][index].max()))
    for axis, entry, stack in zip(axes, entries, frames, strict=False):
        shown = axis.imshow(np.where(stack[index] > 0, stack[index], np.nan), norm=scale, cmap="viridis")
        axis.set_facecolor("#440154")
        axis.set_title(f"{entry['photons_per_frame']['measured']:,.0f} photons a frame", fontsize=12)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel("one frame at each dose", fontsize=12)
    axes[0].figure.colorbar(shown, ax=list(axes), label="photons per pixel", shrink=0.8, pad=0.01)


def draw_views(axes: np.ndarray, options: argparse.Namespace, entry: dict, views: list[dict]) -> None:
    """Positions of the frames for training and testing, of all and of each view, with three probe discs."""
    kept = {"baseline": {split: options.phase_c_root / entry[split] for split in ("train", "test")}}
    kept |= {
        view["view"]: {split: options.phase_d_root / store["path"] for split, store in view["stores"].items()}
        for view in views
    }
    for axis, (name, stores) in zip(axes, kept.items(), strict=False):
        for split, colour in (("train", BLUE), ("test", ORANGE)):
            part = xr.open_zarr(stores[split])
            y, x = part.position_y.values, part.position_x.values
            axis.plot(x, y, ".", color=colour, markersize=2.5, label=f"{split}, {len(y):,} frames")
            if split == "train":
                for k in np.argsort(np.hypot(y - y.mean(), x - x.mean()))[:4]:
                    axis.add_patch(Circle((x[k], y[k]), 0.3 * part.sizes["detector_y"], fill=False, color=BLUE, lw=1.2))
        axis.axhline(entry["split"]["threshold"], color=SOFT, lw=1, ls="--")
        axis.set_title(title_of(name, options, views), fontsize=12)
        axis.set_xlabel("x, pixels of the object")
        axis.set_aspect("equal")
        axis.invert_yaxis()
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=9, frameon=False, markerscale=4)
    axes[0].set_ylabel("y, pixels of the object", fontsize=12)


def title_of(name: str, options: argparse.Namespace, views: list[dict]) -> str:
    """The view, and how much the frames of a group share."""
    for view in views:
        if view["view"] == name:
            found = json.loads((options.phase_d_root / view["metrics"]["train_metrics.json"]["path"]).read_text())
            return f"{name}: a group shares {found['metric_1_group_based_avg']:.0%} of its discs"
    return f"{name}: every frame"


if __name__ == "__main__":
    main()
