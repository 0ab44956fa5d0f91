"""What single frames can tell of an object: the best linear estimate of each patch from its frame, put together.

    python -m benchmarks.one_frame --data FOLDER [--cases grf "mix 1e5"] [--support 24] [--scored 32]
    python -m benchmarks.one_frame --store STORE --bundle BUNDLE

The second form says how far the patches of a network, `patch` or `cnn`, are off those of the stored object.

A bound that no network is shown: the estimate knows the true object's second moments (its own autocovariance) and the
derivative of its frame's amplitudes at the truth, and sees those through photon noise alone. Frames stand on whole
pixels, where the test scan of the case has them, inside the central `scored` pixels and a patch around. Errors: of a
patch, weighted by the probe's light, as it is and turned by its best phase; of the mean of all patches, with the prior
as it is and widened, which trades what one frame does not tell for noise that the mean evens out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.models import CASES, make_pair
from benchmarks.solver import table
from pipeline.evaluation.metrics import complex_nrmse
from pipeline.evaluation.network import group_stream
from pipeline.learning.bundle import Bundle, load_bundle
from pipeline.learning.grouped import group_support
from pipeline.physics.forward import CanvasGeometry, extract, pad_canvas, support_slice, windows_at
from pipeline.physics.passes import positions_of
from pipeline.scan.chunks import read_all
from pipeline.scan.record import open_record

WIDER: Final = (1.0, 10.0, 100.0)
"""By what the prior's variance is multiplied."""

Doubles = NDArray[np.float64]
Complex = NDArray[np.complex128]


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """Errors of patches (raw, turned) with the prior as it is, and of their mean for each of `WIDER`; of flat ones."""

    patch: float
    turned: float
    mean: tuple[float, ...]
    flat: float


def autocovariance(values: Doubles, support: int) -> Doubles:
    """Of a field that repeats itself, between the pixels of a patch. (y, x) -> (S^2, S^2)."""
    power = np.abs(np.fft.fft2(values - values.mean())) ** 2
    lags = np.fft.ifft2(power).real / values.size
    row, column = np.divmod(np.arange(support**2), support)
    found: Doubles = lags[row[:, None] - row, column[:, None] - column]
    return found


def moments(obj: Complex, support: int) -> tuple[Doubles, Doubles]:
    """Mean (2 S^2,) of amplitude and phase on a patch, and a square root of their covariance, taken as independent."""
    n = support**2
    parts = [np.abs(obj), np.angle(obj)]
    root = np.zeros((2 * n, 2 * n))
    for k, values in enumerate(parts):
        here = slice(k * n, (k + 1) * n)
        jitter = 1e-9 * values.var() * np.eye(n)
        root[here, here] = np.linalg.cholesky(autocovariance(values, support) + jitter)
    return np.concatenate([np.full(n, values.mean()) for values in parts]), root


def slopes(patch: Complex, probe: Complex, side: int) -> Doubles:
    """The derivative of sqrt(photons) of each pixel by amplitude and phase of the patch. (N^2, 2 S^2).

    Parameters
    ----------
    patch, probe : (S, S), the probe in sqrt(photon) per unit of the object. side : N.
    """
    support = len(patch)
    dft = np.fft.fft(np.eye(side))[:, :support] / np.sqrt(side)
    field = (dft @ (patch * probe) @ dft.T).ravel()
    towards = field.conj() / np.maximum(np.abs(field), 1e-12)
    carried = towards[:, None] * np.einsum("ai,bj->abij", dft, dft).reshape(side**2, support**2) * probe.ravel()
    return np.concatenate(
        [(carried * np.exp(1j * np.angle(patch.ravel()))).real, (carried * 1j * patch.ravel()).real], 1
    )


def estimates(patch: Complex, probe: Complex, mean: Doubles, root: Doubles, noise: Doubles) -> list[Complex]:
    """The best linear estimates of a patch from one frame, for each width of the prior.

    Poisson noise of a count has the variance 1/4 in its square root. Minimises 4 |J (x - x0) - y|^2 + |x - m|^2 / C.

    Parameters
    ----------
    mean, root : see `moments`. noise : (N^2,) of variance 1.
    """
    support, side = len(patch), int(np.sqrt(noise.size))
    truth = np.concatenate([np.abs(patch).ravel(), np.angle(patch).ravel()])
    jacobian = slopes(patch, probe, side)
    seen = jacobian @ root
    strength, axes = np.linalg.eigh(4 * seen.T @ seen)
    asked = axes.T @ (4 * seen.T @ (jacobian @ (truth - mean) + noise / 2))
    found = []
    for wider in WIDER:
        values = mean + root @ (axes @ (asked * wider / (1 + wider * np.maximum(strength, 0))))
        amplitude, phase = np.split(values, 2)
        found.append((amplitude * np.exp(1j * phase)).reshape(support, support))
    return found


def measure(store: Path, *, support: int, scored: int, seed: int = 0) -> Told:
    """What the frames in the middle of a scan tell, each by itself."""
    record = open_record(store)
    obj, probes = read_all(record, "object").astype(np.complex128), read_all(record, "probe").astype(np.complex128)
    assert len(probes) == 1, "one mode"
    side = probes.shape[-1]
    photons = record.attrs["photons_per_frame"]["measured"]
    first = (side - support) // 2
    probe = probes[0, first : first + support, first : first + support]
    middle = np.array(obj.shape) // 2
    corners = np.rint(positions_of(record)).astype(int) - support // 2
    near = (np.abs(corners + support / 2 - middle) < (scored + support) / 2).all(1)
    patches = [obj[y : y + support, x : x + support] for y, x in corners[near]]
    probe = probe * np.sqrt(photons / np.mean([np.sum(np.abs(probe * patch) ** 2) for patch in patches]))
    light = np.abs(probe) ** 2 / (np.abs(probe) ** 2).max()
    mean, root = moments(obj, support)
    rng = np.random.default_rng(seed)
    sums, weight = [np.zeros_like(obj) for _ in WIDER], np.zeros(obj.shape)
    off = np.zeros(4)  # light-weighted squares: raw, turned, flat, truth
    level = complex(np.mean(obj))
    for (y, x), patch in zip(corners[near], patches, strict=True):
        found = estimates(patch, probe, mean, root, rng.standard_normal(side**2))
        inside = slice(y, y + support), slice(x, x + support)
        for total, one in zip(sums, found, strict=True):
            total[inside] += light * one
        weight[inside] += light
        agreed = np.vdot(found[0] * light, patch)
        versions = (found[0], found[0] * agreed / abs(agreed), np.full_like(patch, level), np.zeros_like(patch))
        off += [np.sum(light * np.abs(version - patch) ** 2) for version in versions]
    window = tuple(slice(m - scored // 2, m + scored // 2) for m in middle)
    raw, turned, flat, _ = np.sqrt(off / off[3])
    whole = tuple(complex_nrmse((total / np.maximum(weight, 1e-6))[window], obj[window]) for total in sums)
    return Told(patch=float(raw), turned=float(turned), mean=whole, flat=float(flat))


def of_network(store: Path, bundle: Bundle) -> tuple[float, float]:
    """Errors of a network's patches of all frames, as they are but for one factor of all, and each turned.

    The patches of the truth lie where the frames stood, between its pixels by bilinear interpolation.
    """
    stream = group_stream(store, bundle.training)
    obj = torch.from_numpy(read_all(stream.record, "object"))
    probe = torch.from_numpy(read_all(stream.record, "probe"))
    support = group_support(bundle.training, probe)
    inside = support_slice(probe.shape[-1], support)
    light = probe[:, inside, inside].abs().square().sum(0)
    light = light / light.max()
    geometry = CanvasGeometry(origin=(0, 0), shape=(obj.shape[0], obj.shape[1]))
    padded = pad_canvas(obj, outside=obj.mean())
    made, true = [], []
    for batch in stream:
        windows = windows_at(batch.positions.flatten(0, 1), geometry=geometry, support=support, dtype=light.dtype)
        true.append(extract(padded, windows))
        made.append(torch.from_numpy(bundle.diffraction_to_obj(batch)).flatten(0, 1))
    found, truth = torch.cat(made), torch.cat(true)
    each = (light * found.conj() * truth).sum((1, 2))
    factor = each.sum() / (light * found.abs().square()).sum()
    turn = (each / each.abs())[:, None, None] * factor.abs()
    energy = (light * truth.abs().square()).sum()
    raw, turned = ((light * (found * by - truth).abs().square()).sum() / energy for by in (factor, turn))
    return float(raw.sqrt()), float(turned.sqrt())


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with lines_ci_n1e5_{train,test}.npz")
    parser.add_argument("--store", type=Path, help="with --bundle: a scan with its true object")
    parser.add_argument("--bundle", type=Path, help="of the model patch or cnn")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--support", type=int, default=24, help="S, pixels of a patch")
    parser.add_argument("--scored", type=int, default=32, help="pixels of the object that are scored")
    options = parser.parse_args(argv)
    if (options.store is None) != (options.bundle is None) or (options.data is None) == (options.bundle is None):
        parser.error("give --data, or --store and --bundle")
    if options.bundle is not None:
        raw, turned = of_network(options.store, load_bundle(options.bundle))
        print(table(["a patch", "turned"], [[f"{raw:.4f}", f"{turned:.4f}"]]))
        return 0
    cells = []
    with tempfile.TemporaryDirectory() as name:
        for case in options.cases:
            _, store = make_pair(case, options.data, Path(name))
            told = measure(store, support=options.support, scored=options.scored)
            means = [f"{value:.4f}" for value in told.mean]
            cells.append([case, f"{told.patch:.4f}", f"{told.turned:.4f}", *means, f"{told.flat:.4f}"])
            print("#", *cells[-1], flush=True)
    wider = [f"mean, prior x {factor:g}" for factor in WIDER]
    print(table(["case", "a patch", "turned", *wider, "flat patches"], cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
