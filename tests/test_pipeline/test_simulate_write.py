"""A recipe gives the same bytes each time, as a store and in every legacy dialect."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, IntegrityError, TargetExistsError
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.record import open_record
from pipeline.scan.store import open_scan, open_stored, write_scan
from pipeline.simulate.recipe import RECIPES, recipe_named
from pipeline.simulate.scan import Simulation, plan_simulation
from pipeline.simulate.write import Dialect, dataset_of, provenance_of, write_legacy, write_store
from tests.builders import tree_bytes
from tests.guards import run_command

SMALL = replace(RECIPES["demo"], n_frames=70, object_side=96, frame_side=32)


def small(seed: int = 0, **options: float) -> Simulation:
    """A simulation of a second's fraction."""
    return plan_simulation(SMALL, seed=seed, **options)


def test_the_same_recipe_and_seed_give_the_same_tree_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_store(small(seed), tmp_path / f"{name}.zarr")
    trees = {name: tree_bytes(tmp_path / f"{name}.zarr") for name in "abc"}
    assert trees["a"] == trees["b"]
    assert trees["a"]["diffraction/c.0.0.0"] != trees["c"]["diffraction/c.0.0.0"]


def test_the_dose_asked_for_is_the_dose_measured(tmp_path: Path) -> None:
    write_store(small(photons_per_frame=5e4), tmp_path / "s.zarr")
    photons = open_record(tmp_path / "s.zarr").attrs["photons_per_frame"]
    assert photons["declared"] == 5e4
    assert photons["measured"] == pytest.approx(5e4, rel=0.01)


def test_frames_do_not_depend_on_how_they_are_cut_into_blocks() -> None:
    simulation = small()
    whole = simulation.counts(0, 70)
    parts = [simulation.counts(a, b) for a, b in itertools.pairwise((0, 1, 9, 64, 70))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_photons_of_a_frame_are_its_own_whichever_others_are_taken() -> None:
    simulation = small()
    part = replace(simulation, frames=simulation.frames[5:69:3])
    np.testing.assert_array_equal(part.counts(0, part.shape[0]), simulation.counts(0, 70)[5:69:3])
    np.testing.assert_array_equal(part.positions, simulation.positions[5:69:3])
    np.testing.assert_array_equal(part.labels(2, 9), simulation.labels(0, 70)[5:69:3][2:9])


def test_training_and_test_part_share_no_object() -> None:
    for name in ("mix", "lines-independent", "lines"):
        train, test = (replace(RECIPES[n], n_frames=4) for n in (name, f"{name}-test"))
        objects = [plan_simulation(r, seed=0).object for r in (train, test)]
        assert abs(np.corrcoef(np.abs(objects[0]).ravel(), np.abs(objects[1]).ravel())[0, 1]) < 0.6


def test_the_recipes_of_the_figures_are_as_they_are_named() -> None:
    for name, amplitude in (("mix", "dead-leaves"), ("lines-independent", "lines")):
        train, test = RECIPES[name], RECIPES[f"{name}-test"]
        assert (train.amplitude, train.phase, train.n_frames, test.n_frames) == (amplitude, "lines", 2000, 1000)
        assert (train.photons_per_frame, train.positions, train.object_side) == (1e5, "uniform", 256)


dialects = [
    Dialect(key="diff3d"),
    Dialect(axes="yxf", dtype="int32", deflated=False),
    Dialect(axes="fyx1", dtype="uint32", complex_dtype="complex128"),
    Dialect(quantity="amplitude", dtype="float32", axes="yxf"),
    Dialect(quantity="scaled-amplitude", dtype="float32"),
    Dialect(quantity="scaled-amplitude", dtype="float64", probe_axes="yx1"),
    Dialect(quantity="counts", dtype="float32"),
]


@pytest.mark.parametrize("dialect", dialects, ids=str)
def test_every_dialect_converts_to_the_counts_that_were_simulated(dialect: Dialect, tmp_path: Path) -> None:
    simulation = small()
    write_legacy(simulation, tmp_path / "scan.npz", dialect)
    float_counts = dialect.quantity == "counts" and dialect.dtype.startswith("f")
    declared = Declaration(quantity="counts" if float_counts else None)
    ingest(plan_ingest(tmp_path / "scan.npz", declared), tmp_path / "scan.zarr")
    stored = open_stored(tmp_path / "scan.zarr")
    np.testing.assert_array_equal(stored["diffraction"].values, simulation.counts(0, 70))
    np.testing.assert_allclose(stored["object"].values, simulation.object)
    np.testing.assert_array_equal(stored["position_y"].values, simulation.geometry.positions[:, 0])
    assert stored.attrs["photons_per_frame"]["declared"] == simulation.photons_per_frame


def test_a_scaled_file_holds_frames_and_probe_in_one_gauge(tmp_path: Path) -> None:
    write_legacy(small(), tmp_path / "scan.npz", Dialect(quantity="scaled-amplitude", dtype="float32"))
    with np.load(tmp_path / "scan.npz") as npz:
        energy = (npz["diffraction"].astype(float) ** 2).sum(axis=(1, 2)).mean()
        assert energy == pytest.approx(16**2, rel=0.01)  # (N/2)^2
        assert (np.abs(npz["probeGuess"]) ** 2).sum() == pytest.approx(energy, rel=0.6)


def test_two_writings_of_a_legacy_file_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_legacy(small(), tmp_path / f"{name}.npz", Dialect())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_like_takes_probe_and_positions_from_a_store_or_a_file(tmp_path: Path) -> None:
    simulation = small()
    write_store(simulation, tmp_path / "a.zarr")
    write_legacy(simulation, tmp_path / "a.npz", Dialect())
    for like in (tmp_path / "a.zarr", tmp_path / "a.npz"):
        again = plan_simulation(recipe_named("lines"), seed=5, like=like)
        np.testing.assert_array_equal(again.geometry.positions, simulation.geometry.positions)
        assert again.object.shape == simulation.object.shape
        ratio = again.geometry.probe / simulation.geometry.probe
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)


def test_the_same_recipe_again_is_unchanged_and_something_else_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "s.zarr"
    first = write_store(small(), target)
    assert write_store(small(), target) == (first[0], "unchanged")
    with pytest.raises(TargetExistsError):
        write_store(small(seed=9), target)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_recipe_made_on_other_hardware_is_kept_and_not_called_damaged(tmp_path: Path) -> None:
    other = dataset_of(small(), provenance=provenance_of(small()))
    other["probe"] = other["probe"] * np.complex64(1 + 1e-7)  # the last bit, as another processor's exp gives it
    other["probe"].attrs = dataset_of(small(), provenance=provenance_of(small()))["probe"].attrs
    sha256 = write_scan(other, tmp_path / "s.zarr")
    assert write_store(small(), tmp_path / "s.zarr") == (sha256, "kept")


def test_a_damaged_recipe_is_called_damaged(tmp_path: Path) -> None:
    write_store(small(), tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(IntegrityError):
        write_store(small(), tmp_path / "s.zarr")


def test_the_true_object_is_stored_as_truth(tmp_path: Path) -> None:
    write_store(small(), tmp_path / "s.zarr")
    assert open_scan(tmp_path / "s.zarr")["object"].attrs["role"] == "truth"


@pytest.mark.parametrize(
    "arguments", [["--recipe", "mixx"], ["--photons-per-frame", "-1"], ["--photons-per-frame", "1e16"]], ids=str
)
def test_what_cannot_be_simulated_is_a_usage_error(arguments: list[str], tmp_path: Path) -> None:
    done = run_command("pipeline.simulate", "--output", tmp_path / "s.zarr", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_dialect_that_cannot_hold_the_quantity_is_refused() -> None:
    with pytest.raises(ConfigError):
        Dialect(quantity="amplitude", dtype="uint16")
