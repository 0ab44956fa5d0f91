"""Patches put together: the object comes back whatever the batches, and phases can be made to agree."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.evaluation.reassembly import (  # noqa: E402  # behind the check that torch is there
    Placed,
    agreeing_phases,
    laid,
    overlap_matrix,
    reassemble,
    reassemble_aligned,
)
from pipeline.physics.forward import CanvasGeometry  # noqa: E402
from pipeline.physics.patches import patch_optics  # noqa: E402
from tests.guards import REPOSITORY  # noqa: E402
from tests.patched_scans import cut, optics_of, truth_of  # noqa: E402
from tests.physics_scans import make_scan, nrmse  # noqa: E402

GEOMETRY = CanvasGeometry(origin=(0, 0), shape=(80, 80))


@functools.cache
def perfect():
    """Patches of a known object, where they lie, the probe's light, and the object in the solver's gauge."""
    scan = make_scan(noise=False)
    full = optics_of(scan, support=32)
    truth, where = truth_of(scan, full), torch.from_numpy(scan.positions)
    patches = cut(truth, where, support=32).to(torch.complex64)
    return patches, where, patch_optics(full).light.float(), truth.numpy()


def in_batches(patches: torch.Tensor, where: torch.Tensor, size: int):
    return (Placed(patches[at : at + size], where[at : at + size]) for at in range(0, len(where), size))


def test_perfect_patches_give_the_object_back() -> None:
    """To 0.76 %, what two bilinear steps blur."""
    patches, where, light, truth = perfect()
    made = reassemble(in_batches(patches, where, 50), light, geometry=GEOMETRY, level=0.7)
    assert nrmse(made.object.numpy(), truth) < 0.008
    assert made.turned_rad is None


def test_the_size_of_batches_does_not_matter() -> None:
    patches, where, light, _ = perfect()
    one, other = (
        reassemble(in_batches(patches, where, size), light, geometry=GEOMETRY, level=0.7) for size in (7, 160)
    )
    assert torch.equal(one.object, other.object)
    assert torch.equal(one.coverage, other.coverage)


def test_coverage_is_the_light_that_fell() -> None:
    patches, _, light, _ = perfect()
    where = torch.tensor([[40.0, 40.0]], dtype=torch.float64)
    made = reassemble([Placed(patches[:1], where)], light, geometry=GEOMETRY, level=0.7)
    assert torch.allclose(made.coverage[24:56, 24:56], light)
    assert float(made.coverage.sum()) == pytest.approx(float(light.sum()))
    assert torch.allclose(made.object[:20], torch.full((20, 80), 0.7, dtype=torch.complex64))


@pytest.mark.parametrize("wrong", ["axes", "flip", "transpose", "pairing"])
def test_any_other_geometry_is_worse(wrong: str) -> None:
    patches, where, light, truth = perfect()
    where = where.flip(1) if wrong == "axes" else where
    patches = {
        "axes": patches, "flip": patches.flip(-2), "transpose": patches.mT, "pairing": patches.roll(1, 0),
    }[wrong]  # fmt: skip
    made = reassemble(in_batches(patches, where, 50), light, geometry=GEOMETRY, level=0.7)
    assert nrmse(made.object.numpy(), truth) > 0.05


# --- phases


def turned_patches(spread_rad: float):
    patches, where, light, truth = perfect()
    angles = torch.randn(len(patches), generator=torch.Generator().manual_seed(0)) * spread_rad
    return patches * torch.polar(torch.ones_like(angles), angles)[:, None, None], where, light, truth, angles


def test_turned_patches_are_turned_back() -> None:
    patches, where, light, truth, angles = turned_patches(0.8)
    plain = reassemble(in_batches(patches, where, 50), light, geometry=GEOMETRY, level=0.7)
    aligned = reassemble_aligned(
        in_batches(patches, where, 50), light, geometry=GEOMETRY, level=0.7, n_patches=len(where), iterations=300
    )
    assert nrmse(plain.object.numpy(), truth) > 0.05
    assert nrmse(aligned.object.numpy(), truth) < 0.009
    assert aligned.turned_rad == pytest.approx(float(angles.std()), rel=0.02)


def test_patches_that_agree_are_left_alone() -> None:
    patches, where, light, _ = perfect()
    phases = agreeing_phases(
        overlap_matrix(laid([Placed(patches, where)], light, n_patches=len(where))), iterations=100
    )
    assert float((phases - 1).abs().max()) < 0.02


def test_the_overlap_matrix_is_hermitian_and_compares_neighbours_alone() -> None:
    patches, where, light, *_ = turned_patches(0.8)
    found = overlap_matrix(laid(in_batches(patches, where, 50), light, n_patches=len(where))).toarray()
    assert np.allclose(found, found.conj().T)
    apart = np.linalg.norm(where.numpy()[:, None] - where.numpy(), axis=-1)
    assert ((found != 0) == (apart <= 18)).all()


def test_an_inner_product_is_that_of_the_canvas() -> None:
    from pipeline.physics.forward import pad_canvas, scatter, windows_at

    patches, where, light, *_ = turned_patches(0.8)
    found = overlap_matrix(laid([Placed(patches, where)], light, n_patches=len(where))).toarray()
    neighbour = int(np.flatnonzero(found[0, 1:])[0]) + 1
    apart = []
    for frame in (0, neighbour):
        onto = pad_canvas(torch.zeros(80, 80, dtype=torch.complex64), outside=0)
        windows = windows_at(where[frame : frame + 1], geometry=GEOMETRY, support=32, dtype=torch.float32)
        scatter(patches[frame : frame + 1] * light, windows, onto=onto)
        apart.append(onto)
    assert found[0, neighbour] == pytest.approx(complex((apart[0].conj() * apart[1]).sum()), rel=1e-4)


def test_a_patch_without_neighbours_keeps_its_phase() -> None:
    patches, _, light, _ = perfect()
    lonely = Placed(patches[:2], torch.tensor([[20.0, 20.0], [60.0, 60.0]], dtype=torch.float64))
    overlaps = overlap_matrix(laid([lonely], light, n_patches=2))
    assert torch.equal(agreeing_phases(overlaps, iterations=5), torch.ones(2, dtype=torch.complex64))
    made = reassemble_aligned([lonely], light, geometry=GEOMETRY, level=0.7, n_patches=2, iterations=5)
    assert made.turned_rad is None


def test_wide_patches_are_compared_over_wide_steps() -> None:
    rows, columns = np.divmod(np.arange(25), 5)
    where = torch.from_numpy(np.stack([rows, columns], axis=1) * 20.0)  # 20 px apart, of 64
    angles = torch.randn(25, generator=torch.Generator().manual_seed(0))
    patches = torch.polar(torch.ones(25), angles)[:, None, None].expand(-1, 64, 64)
    overlaps = overlap_matrix(laid([Placed(patches, where)], torch.ones(64, 64), n_patches=25))
    agreed = agreeing_phases(overlaps, iterations=300) * torch.polar(torch.ones(25), angles)
    assert float(agreed.std()) < 1e-3
    narrow = overlap_matrix(laid([Placed(patches[:, :32, :32], where)], torch.ones(32, 32), n_patches=25))
    assert narrow.nnz == 25


@pytest.mark.parametrize(("how", "kept"), [("reassemble", 0.1), ("reassemble_aligned", 1.5)])
def test_memory_goes_by_the_canvas_or_where_phases_are_aligned_by_the_patches(how: str, kept: float) -> None:
    """In a process of its own, whose peak is its alone; in units of the patches that were added."""
    command = [sys.executable, "-c", PEAK_OF, how]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(told.stdout) < kept


PEAK_OF = """
import resource, sys, torch
from pipeline.evaluation.reassembly import Placed, reassemble, reassemble_aligned
from pipeline.physics.forward import CanvasGeometry
def scan(n):
    for first in range(0, n, 100):
        yield Placed(torch.ones(100, 32, 32, dtype=torch.complex64), torch.rand(100, 2, dtype=torch.float64) * 900 + 50)
def peak(n):
    how = {"geometry": CanvasGeometry(origin=(0, 0), shape=(1000, 1000)), "level": 0.7}
    if sys.argv[1] == "reassemble":
        reassemble(scan(n), torch.ones(32, 32), **how)
    else:
        reassemble_aligned(scan(n), torch.ones(32, 32), iterations=5, n_patches=n, **how)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(4000)
print((peak(8000) - before) / (4000 * 8 * 33**2))
"""
