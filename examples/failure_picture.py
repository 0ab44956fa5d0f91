"""Where patches of single frames fail: phases that disagree, as they are and turned to agree, beside solver and truth.

`python examples/failure_picture.py STORE RAW ALIGNED --output FILE.png`: the folders of two `reconstruct --bundle` of a
scan of 256 px whose object is known, the second with `--align-phases`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("agg")
import matplotlib.pyplot as plt
import xarray as xr

SEEN = slice(43, 211)
"""Rows and columns that are scored, as everywhere in docs/models.md."""

Object = NDArray[np.complex64]


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("raw", type=Path)
    parser.add_argument("aligned", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    truth = xr.open_zarr(options.store).object.values
    inside = SEEN, SEEN
    found = {
        "the solver": found_in(options.raw, "object_solver", truth)[inside],
        "patches as they are": found_in(options.raw, "object", truth)[inside],
        "patches turned to agree": found_in(options.aligned, "object", truth)[inside],
    }
    seen = truth[inside]
    figure, axes = plt.subplots(2, 4, figsize=(15, 7.6), layout="constrained")
    low, high = np.percentile(np.angle(seen), (0.5, 99.5))
    for column, (name, obj) in enumerate(found.items()):
        obj = obj * gauge(obj, seen)
        error = np.abs(obj - seen)
        nrmse = float(np.sqrt((error**2).sum() / (np.abs(seen) ** 2).sum()))
        panel(axes[0, column], np.angle(obj), name, vmin=low, vmax=high)
        shown = panel(axes[1, column], error, f"off by {nrmse:.4f}", vmin=0, vmax=0.3, cmap="magma")
    phase = panel(axes[0, 3], np.angle(seen), "the truth", vmin=low, vmax=high)
    figure.colorbar(phase, ax=axes[0, 3], label="phase, rad")
    figure.colorbar(shown, ax=axes[1, 2], label="modulus of the error")
    axes[1, 3].set_axis_off()
    figure.savefig(options.output, dpi=100)


def found_in(folder: Path, name: str, truth: Object) -> Object:
    """An object of a reconstruction on the grid of the truth, zero where it has none."""
    made = xr.open_zarr(folder / "reconstruction.zarr")
    whole, first = np.zeros_like(truth), made.attrs["origin_px"]
    values = made[name].values
    rows, columns = (slice(max(f, 0), min(f + n, m)) for f, n, m in zip(first, values.shape, truth.shape, strict=True))
    whole[rows, columns] = values[
        rows.start - first[0] : rows.stop - first[0], columns.start - first[1] : columns.stop - first[1]
    ]
    return whole


def gauge(obj: Object, truth: Object) -> complex:
    """The complex factor that brings an object nearest to the truth, least squares."""
    return complex(np.vdot(obj, truth) / np.vdot(obj, obj))


def panel(axis: plt.Axes, values: NDArray[np.floating], title: str, **how: object) -> mpl.image.AxesImage:
    """An image without ticks."""
    shown = axis.imshow(values, **{"cmap": "viridis", **how})
    axis.set_title(title, fontsize=12)
    axis.set_xticks([])
    axis.set_yticks([])
    return shown


if __name__ == "__main__":
    main()
