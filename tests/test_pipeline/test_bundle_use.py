"""A bundle at work: what `load_bundle` gives finds objects and predicts frames with the bundle's file alone."""

from __future__ import annotations

import functools
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline import reconstruct, train  # noqa: E402  # behind the check that torch is there
from pipeline.errors import BundleError, ConfigError, NotFoundError, SchemaError  # noqa: E402
from pipeline.learning.bundle import Bundle, load_bundle, save_bundle  # noqa: E402
from pipeline.scan.store import write_scan  # noqa: E402
from tests.builders import make_scan as plain_scan  # noqa: E402
from tests.guards import run_main  # noqa: E402
from tests.physics_scans import Scan, make_scan, nrmse  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

SOLVER = (
    "--set", "solver.iterations=6", "--set", "prior.choice_iterations=4", "--set", "solver.start_iterations=3",
    "--set", "solver.batch_pixels=51200", "--set", "refine.iterations=4", "--set", "refine.choice_iterations=3",
    "--set", "refine.start_passes=2", "--quiet",
)  # fmt: skip
FITTING = ("--batch-size", "40", "--steps", "8", "--set", "fit.warmup=2", "--set", "network.width=4")


@functools.cache
def scan() -> Scan:
    return make_scan(noise=True)


def trained_on(store: Path, folder: Path, *more: str) -> Path:
    """The bundle of a short training; its run is gone."""
    done = run_main(train.main, store, "--output", folder / "run", *SOLVER, *FITTING, *more, "--json")
    assert done.returncode == 0, done.stderr
    shutil.move(folder / "run" / "wts.h5.zip", folder / "wts.h5.zip")
    shutil.rmtree(folder / "run")
    return folder / "wts.h5.zip"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(scan(), tmp_path_factory.mktemp("use") / "good.zarr")


@pytest.fixture(scope="module")
def path(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(store, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return load_bundle(path)


def reconstructed(store: Path, bundle: Path, output: Path, *more: str) -> tuple[xr.Dataset, list[str]]:
    done = run_main(reconstruct.main, store, "--bundle", bundle, "--output", output, *SOLVER, *more, "--json")
    assert done.returncode == 0, done.stderr
    return xr.open_zarr(output / "reconstruction.zarr").load(), json.loads(done.stdout)["warnings"]


# --- diffraction_to_obj


def test_the_object_is_bit_for_bit_what_reconstruct_writes(
    bundle: Bundle, path: Path, store: Path, tmp_path: Path
) -> None:
    written, _ = reconstructed(store, path, tmp_path / "run")
    found = bundle.diffraction_to_obj(str(store))
    assert found.dtype == np.complex64
    assert np.array_equal(found, written.object.values)
    assert not np.array_equal(found, written.object_solver.values)
    assert list(bundle.improve(store).origin_px) == written.attrs["origin_px"]


def test_where_probe_and_positions_are_refined_the_object_is_that_of_the_same_prior(tmp_path: Path) -> None:
    off = scan().positions + np.random.default_rng(3).uniform(-0.7, 0.7, scan().positions.shape)
    off = off.clip(0, np.array(scan().truth.shape) - 1)
    source = store_of(scan(), tmp_path / "off.zarr", positions=off)
    path = trained_on(source, tmp_path, "--refine", "probe,positions")
    bundle = load_bundle(path)
    prior = ("--prior", bundle.prior.name, "--set", f"prior.weight={bundle.prior.weight}")
    written, _ = reconstructed(source, path, tmp_path / "again", "--refine", "probe,positions", *prior)
    assert not np.array_equal(written.probe.values, scan().probe)
    assert np.array_equal(bundle.diffraction_to_obj(source), written.object.values)


def test_the_object_of_another_scan_lies_where_it_says(bundle: Bundle, tmp_path: Path) -> None:
    other = make_scan(noise=True, n_frames=120, texture="dead-leaves")
    made = bundle.improve(store_of(other, tmp_path / "other.zarr"))
    (top, left), (height, width) = made.origin_px, made.object.shape
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    found = made.object[rows.start - top :, columns.start - left :]
    truth = other.truth[rows, columns]
    found = found[: truth.shape[0], : truth.shape[1]]
    error = nrmse(found, truth)
    assert error < 0.7 * nrmse(np.ones_like(truth), truth)
    assert all(error < nrmse(np.roll(found, shift, axis), truth) for shift in (-1, 1) for axis in (0, 1))


def test_a_scan_without_probe_is_seen_with_the_bundles_own(
    bundle: Bundle, path: Path, store: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.zarr"
    write_scan(xr.open_zarr(store).drop_vars("probe"), bare)
    written, warnings = reconstructed(bare, path, tmp_path / "run")
    assert any("no probe: that of the bundle" in warning for warning in warnings)
    assert np.array_equal(bundle.diffraction_to_obj(bare), written.object.values)
    assert np.array_equal(bundle.diffraction_to_obj(bare), bundle.diffraction_to_obj(store))


def test_torch_is_left_as_it_was(bundle: Bundle, store: Path) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    next(bundle.autoencoder(store))
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


# --- autoencoder


def test_predicted_frames_differ_from_the_measured_ones_by_little_more_than_photon_noise(
    bundle: Bundle, store: Path
) -> None:
    predicted = np.concatenate(list(bundle.autoencoder(store)))
    assert (predicted.dtype, predicted.shape) == (np.float32, scan().intensity.shape)
    measured, bright = np.sqrt(scan().intensity), scan().intensity > 20
    spread = float((predicted - measured)[bright].std())
    assert 0.4 < spread < 0.65  # sqrt of a Poisson number varies by 0.5
    assert float((np.roll(predicted, 1, 0) - measured)[bright].std()) > 0.6


def test_predicted_frames_have_the_scale_of_the_source(bundle: Bundle, tmp_path: Path) -> None:
    source = store_of(scan(), tmp_path / "amplitude.zarr", scale=None)
    predicted = np.concatenate(list(bundle.autoencoder(source, photons_per_frame=3e4)))
    measured = xr.open_zarr(source).diffraction.values
    assert float((predicted**2).sum() / (measured.astype(float) ** 2).sum()) == pytest.approx(1, abs=0.03)


def test_batches_of_any_size_hold_the_same_frames_in_the_order_of_the_store_without_invalid_ones(
    bundle: Bundle, store: Path, tmp_path: Path
) -> None:
    valid = np.ones(len(scan().positions), bool)
    valid[[0, 5, 77]] = False
    some = store_of(scan(), tmp_path / "some.zarr", frame_valid=(("frame",), valid))
    made = bundle.improve(some)
    batches = list(made.amplitudes(batch_size=50))
    assert [len(batch) for batch in batches] == [50, 50, 50, 7]
    one = np.concatenate(list(made.amplitudes(batch_size=1)))
    assert np.allclose(np.concatenate(batches), one, rtol=1e-5, atol=1e-5)
    expected = np.sqrt(make_scan(noise=False).intensity[valid])
    nearest = [int(np.argmin(((expected - frame) ** 2).sum((1, 2)))) for frame in one]
    assert np.mean(np.array(nearest) == np.arange(157)) > 0.9


def test_predicting_takes_the_memory_of_a_batch_not_of_the_scan(bundle: Bundle, store: Path) -> None:
    made = bundle.improve(store)
    tracemalloc.start()
    try:
        for batch in made.amplitudes(batch_size=4):
            assert batch.shape == (4, 32, 32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < scan().intensity.astype(np.float32).nbytes / 4


# --- refusals


def test_a_scan_of_other_frames_or_none_is_refused_by_name(bundle: Bundle, store: Path, tmp_path: Path) -> None:
    wide = store_of(make_scan(noise=True, n_frames=20, n=48, side=90), tmp_path / "wide.zarr")
    bare = tmp_path / "bare.zarr"
    write_scan(xr.open_zarr(wide).drop_vars("probe"), bare)
    for source in (wide, bare):
        with pytest.raises(BundleError, match="trained on frames of 32 x 32, and the scan has 48 x 48"):
            bundle.diffraction_to_obj(source)
    with pytest.raises(NotFoundError):
        bundle.autoencoder(tmp_path / "nothing.zarr")
    with pytest.raises(ConfigError, match="at least 1"):
        bundle.autoencoder(store, batch_size=0)


def test_a_scan_without_probe_is_refused_without_a_bundle(tmp_path: Path) -> None:
    write_scan(plain_scan(20).drop_vars("probe"), tmp_path / "bare.zarr")
    done = run_main(reconstruct.main, tmp_path / "bare.zarr", "--output", tmp_path / "run")
    assert (done.returncode, "no probe" in done.stderr) == (4, True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "cnn"}, "the model cnn takes a Batch"),
        ({"config": {"frame_side": 32, "configuration": {}}}, "no 'prior'"),
        ({"config": {"prior": {"name": "tv", "lam": 0.01}}}, "no 'configuration'"),
        ({"weights": {}}, "'first.weight' is missing"),
    ],
)
def test_a_bundle_that_cannot_be_used_says_why(
    bundle: Bundle, store: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    parts = {"model": bundle.model, "config": bundle.config, "weights": bundle.weights}
    if "weights" in changed:
        changed = {"weights": {n: w for n, w in bundle.weights.items() if n != "first.weight"}}
    save_bundle(tmp_path / "b.zip", **{**parts, **changed}, probe=bundle.probe, lineage=bundle.lineage)
    with pytest.raises(BundleError, match=said):
        load_bundle(tmp_path / "b.zip").diffraction_to_obj(store)


def test_a_store_that_is_no_scan_is_refused(bundle: Bundle, path: Path, store: Path, tmp_path: Path) -> None:
    reconstructed(store, path, tmp_path / "run")
    with pytest.raises(SchemaError, match="no scan"):
        bundle.diffraction_to_obj(tmp_path / "run" / "reconstruction.zarr")
