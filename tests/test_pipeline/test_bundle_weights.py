"""What a bundle holds: the same weights under both names, the same bytes each time, nothing that leads elsewhere."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

import h5py  # noqa: E402  # behind the check that the extra is there

from pipeline.errors import BundleError, TargetExistsError  # noqa: E402
from pipeline.learning.bundle import load_bundle, save_bundle  # noqa: E402
from pipeline.scan.bundle import pack_bundle, read_bundle  # noqa: E402
from tests.guards import REPOSITORY  # noqa: E402

CONFIG = {"model": "canvas", "fit": {"steps": 1000}}
LINEAGE = {"store_sha256": "ab" * 32, "source": {"name": "scan.npz", "sha256": "cd" * 32}, "orders": {"fit": "ef" * 32}}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def weights() -> dict[str, torch.Tensor]:
    """Those of a small network, as torch names them."""
    return {
        "first.weight": numbers(4, 1, 3, 3),
        "first.bias": numbers(4),
        "down.0.weight": numbers(8, 4, 2, 2),
        "scale": torch.tensor(0.5),
        "last.weight": torch.zeros(2, 8, 1, 1),
    }


def probe(modes: int = 2, side: int = 8) -> torch.Tensor:
    return torch.complex(numbers(modes, side, side, seed=1), numbers(modes, side, side, seed=2))


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights().items()}


def saved(path: Path, **changed: Any) -> str:
    given = {"model": "canvas", "config": CONFIG, "weights": weights(), "probe": probe(), "lineage": LINEAGE}
    return save_bundle(path, **{**given, **changed})


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return list(found) == sorted(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


# --- there and back


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)


@given(
    tensors=st.dictionaries(
        NAMES.filter(lambda name: name != "."),
        st.lists(st.integers(0, 4), max_size=4),
        min_size=1,
        max_size=20,
    ),
    modes=st.integers(1, 3),
    side=st.integers(1, 9),
)
def test_what_is_saved_is_loaded(tmp_path: Path, tensors: dict[str, list[int]], modes: int, side: int) -> None:
    path = tmp_path / "wts.h5.zip"
    path.unlink(missing_ok=True)
    given = {name: numbers(*shape, seed=i) for i, (name, shape) in enumerate(tensors.items())}
    sha256 = saved(path, weights=given, probe=probe(modes, side))
    found = load_bundle(path, expected={name: tuple(shape) for name, shape in tensors.items()})
    assert same(found.weights, given)
    assert torch.equal(found.probe, probe(modes, side))
    assert (found.model, found.config, found.lineage, found.sha256) == ("canvas", CONFIG, LINEAGE, sha256)


def test_both_names_are_one_group_with_the_same_weights(tmp_path: Path) -> None:
    saved(tmp_path / "wts.h5.zip")
    with h5py.File(io.BytesIO(read_bundle(tmp_path / "wts.h5.zip").members["wts.h5"]), "r") as file:
        assert sorted(file) == ["autoencoder", "diffraction_to_obj", "probe"]
        assert file["autoencoder"] == file["diffraction_to_obj"]
        for group in (file["autoencoder"], file["diffraction_to_obj"]):
            assert same({name: torch.from_numpy(np.asarray(group[name])) for name in group}, weights())
        assert np.array_equal(file["probe"], probe().numpy())
        assert file.attrs["model"] == b"canvas"


def test_tensors_that_train_or_lie_in_another_order_are_saved_as_their_values(tmp_path: Path) -> None:
    one = {name: weight.clone().requires_grad_() for name, weight in reversed(weights().items())}
    turned = probe().transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert saved(tmp_path / "a.zip", weights=one, probe=turned) == saved(tmp_path / "b.zip")


def test_the_same_model_is_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\nfrom tests.test_pipeline.test_bundle_weights import *\n"
        f"saved(Path({str(tmp_path / 'other.zip')!r}), weights=dict(reversed(weights().items())))"
    )
    sha256 = saved(tmp_path / "wts.h5.zip")
    env = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONHASHSEED": "7"}  # memory that nobody set is no zero
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, env=env)
    assert (tmp_path / "other.zip").read_bytes() == (tmp_path / "wts.h5.zip").read_bytes()
    assert load_bundle(tmp_path / "other.zip").sha256 == sha256
    assert saved(tmp_path / "wts.h5.zip") == sha256
    with pytest.raises(TargetExistsError):
        saved(tmp_path / "wts.h5.zip", model="cnn")


# --- weights of another network


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({**shapes(), "up.0.weight": (4, 4)}, "'up.0.weight' is missing"),
        ({n: s for n, s in shapes().items() if n != "first.bias"}, "'first.bias' is no weight of this network"),
        ({**shapes(), "first.bias": (5,)}, "'first.bias' has shape (4,), the network (5,)"),
        ({f"w{i}": (1,) for i in range(9)}, "and 8 more"),
    ],
)
def test_a_missing_extra_or_wrongly_shaped_weight_is_named(
    tmp_path: Path, expected: dict[str, tuple[int, ...]], said: str
) -> None:
    saved(tmp_path / "wts.h5.zip")
    with pytest.raises(BundleError) as failure:
        load_bundle(tmp_path / "wts.h5.zip", expected=expected)
    assert said in str(failure.value)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = torch.nan
    return changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": {}}, "no weights"),
        ({"weights": {**weights(), "first.bias": with_nan(numbers(4))}}, "'first.bias' holds numbers that are not"),
        ({"weights": {**weights(), "first.bias": numbers(4).double()}}, "'first.bias' is float64, not float32"),
        ({"probe": with_nan(probe())}, "the probe holds numbers that are not finite"),
        ({"probe": probe().to(torch.complex128)}, "the probe is complex128"),
        ({"probe": probe()[0]}, "of shape (8, 8)"),
        ({"probe": probe()[:, :4]}, "of shape (2, 4, 8)"),
        ({"probe": probe()[:0]}, "of shape (0, 8, 8)"),
    ],
)
def test_what_no_model_can_be_used_with_is_not_saved(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError) as failure:
        saved(tmp_path / "wts.h5.zip", **changed)
    assert said in str(failure.value)
    assert list(tmp_path.iterdir()) == []


# --- files that a stranger made


def write(file: h5py.File, **skipped: bool) -> None:
    """What we write, with h5py's own defaults."""
    for name, weight in weights().items():
        file[f"diffraction_to_obj/{name}"] = weight.numpy()
    file["autoencoder"] = file["diffraction_to_obj"]
    file["probe"] = probe().numpy()
    file.attrs["model"] = np.bytes_("canvas")


def strange(path: Path, change: Callable[[h5py.File], None]) -> Path:
    """A bundle whose hashes are right and whose HDF5 is not as we write it."""
    with h5py.File.in_memory() as file:
        write(file)
        change(file)
        file.flush()
        data = file.id.get_file_image()
    pack_bundle(path, {"config.json": b"{}\n", "wts.h5": data}, LINEAGE)
    return path


def replaced(name: str, make: Callable[[h5py.File, str], None]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        make(file, name)

    return change


WEIGHT = "diffraction_to_obj/first.bias"
VALUES = np.arange(4, dtype=np.float32)
LAYOUT = h5py.VirtualLayout((4,), np.float32)


def as_group(file: h5py.File, name: str) -> None:
    file.create_group(name)


def as_type(file: h5py.File, name: str) -> None:
    file[name] = np.dtype(np.float32)


def hollow(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (1 << 40,), np.float32)


def chunked(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=VALUES, chunks=(4,))


def packed(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=VALUES, compression="gzip")


def elsewhere(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (4,), np.float32, external=[("/etc/hostname", 0, 16)])


def virtual(file: h5py.File, name: str) -> None:
    file.create_virtual_dataset(name, LAYOUT)


def linked(target: Any) -> Callable[[h5py.File, str], None]:
    def make(file: h5py.File, name: str) -> None:
        file[name] = target

    return make


def attribute(where: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[where].attrs["model"] = value

    return change


def another_group(file: h5py.File, name: str) -> None:
    file.copy("diffraction_to_obj", name)


def two_names_of_an_array(file: h5py.File) -> None:
    del file["diffraction_to_obj"], file["autoencoder"]
    file["autoencoder"] = file["diffraction_to_obj"] = file["probe"]


def many_names(file: h5py.File) -> None:
    for i in range(2000):
        file[f"diffraction_to_obj/w{i}"] = file["probe"]


def no_model(file: h5py.File) -> None:
    del file.attrs["model"]


def two_attributes(file: h5py.File) -> None:
    file.attrs["more"] = 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("probe", lambda file, name: None), "it holds 'autoencoder', 'diffraction_to_obj', not"),
        (lambda file: as_group(file, "more"), "'more'"),
        (replaced("probe", as_group), "'probe' is no array"),
        (replaced(WEIGHT, as_group), "'first.bias' is no array"),
        (replaced(WEIGHT, as_type), "'first.bias' is no array"),
        (replaced(WEIGHT, linked(h5py.Empty(np.float32))), "'first.bias' is no array"),
        (replaced("autoencoder", another_group), "not one group under two names"),
        (replaced("autoencoder", linked(VALUES)), "not one group under two names"),
        (two_names_of_an_array, "not one group under two names"),
        (replaced("autoencoder", linked(h5py.SoftLink("/diffraction_to_obj"))), "'autoencoder' is a link"),
        (replaced(WEIGHT, linked(h5py.SoftLink("/probe"))), "'first.bias' is a link to another place"),
        (replaced(WEIGHT, chunked), "not stored as plain numbers inside the file"),
        (replaced(WEIGHT, packed), "not stored as plain numbers inside the file"),
        (replaced(WEIGHT, elsewhere), "not stored as plain numbers inside the file"),
        (replaced(WEIGHT, virtual), "not stored as plain numbers inside the file"),
        (replaced(WEIGHT, hollow), "'first.bias' of shape (1099511627776,) has 0 bytes"),
        (replaced(WEIGHT, linked(VALUES.astype(np.float64))), "'first.bias' is float64"),
        (replaced(WEIGHT, linked(VALUES.astype(">f4"))), "'first.bias' is >f4"),
        (replaced(WEIGHT, linked(VALUES.astype(np.int64))), "'first.bias' is int64"),
        (replaced(WEIGHT, linked("text")), "'first.bias' is object"),
        (replaced(WEIGHT, linked(VALUES.astype(np.complex64))), "weight 'first.bias' is complex64, not float32"),
        (replaced(WEIGHT, linked(VALUES * np.nan)), "weight 'first.bias' holds numbers that are not finite"),
        (replaced("probe", linked(VALUES)), "the probe is float32 of shape (4,)"),
        (many_names, "its datasets take"),
        (attribute("probe", 1), "'probe' has attributes"),
        (attribute("diffraction_to_obj", 1), "'autoencoder' has attributes"),
        (attribute(WEIGHT, 1), "'first.bias' has attributes"),
        (no_model, "it has the attributes nothing, not 'model' alone"),
        (two_attributes, "it has the attributes 'model', 'more', not 'model' alone"),
        (attribute("/", "canvas"), "its attribute 'model' is no name of a network"),  # of variable length
        (attribute("/", np.bytes_("a" * 65)), "is no name of a network"),
        (attribute("/", np.bytes_("\x1b[2J")), "is no name of a network"),
        (attribute("/", np.bytes_(b"\xff")), "is no name of a network"),
        (attribute("/", np.array([b"canvas"] * 2)), "is no name of a network"),
        (attribute("/", 3), "is no name of a network"),
    ],
)  # fmt: skip
def test_hdf5_that_we_did_not_write_is_refused(tmp_path: Path, change: Callable[[h5py.File], None], said: str) -> None:
    path = strange(tmp_path / "wts.h5.zip", change)
    with pytest.raises(BundleError) as failure:
        load_bundle(path)
    assert failure.value.message.startswith(f"{path}: wts.h5: ")
    assert said in failure.value.message


def test_the_files_of_a_stranger_differ_from_ours_in_nothing_else(tmp_path: Path) -> None:
    found = load_bundle(strange(tmp_path / "wts.h5.zip", lambda file: None), expected=shapes())
    assert same(found.weights, weights())


def test_a_link_to_another_file_is_refused_before_it_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    there = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
    for name in ("autoencoder", "probe", WEIGHT):
        path = strange(tmp_path / f"{name.replace('/', '-')}.zip", replaced(name, linked(there)))
        with pytest.raises(BundleError, match="is a link to another place"):
            load_bundle(path)


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(99), b"PK\x03\x04" * 50])
def test_what_is_no_hdf5_is_refused(tmp_path: Path, data: bytes) -> None:
    pack_bundle(tmp_path / "wts.h5.zip", {"config.json": b"{}\n", "wts.h5": data}, LINEAGE)
    with pytest.raises(BundleError, match=r"wts\.h5: not "):
        load_bundle(tmp_path / "wts.h5.zip")


FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4)


@given(flips=FLIPS, old=st.booleans())
def test_hdf5_with_changed_bytes_and_right_hashes_is_refused_or_read(
    tmp_path: Path, flips: list[tuple[int, int]], old: bool
) -> None:
    with h5py.File.in_memory(libver="earliest" if old else ("v108", "v108")) as file:
        write(file)
        file.flush()
        data = bytearray(file.id.get_file_image())
    for where, flip in flips:
        data[where % len(data)] ^= flip
    path = tmp_path / "wts.h5.zip"
    path.unlink(missing_ok=True)
    pack_bundle(path, {"config.json": b"{}\n", "wts.h5": bytes(data)}, LINEAGE)
    try:
        found = load_bundle(path)
    except BundleError:
        return
    assert all(torch.isfinite(weight).all() for weight in found.weights.values())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n', "not one canonical JSON object"),
        (b"[]\n", "not one canonical JSON object"),
        (b"{", "not JSON of ours"),
        (b"[" * 100_000, "not JSON of ours"),
        (b'{"a":NaN}\n', "not JSON of ours"),
    ],
)
def test_a_configuration_that_is_not_as_written_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    saved(tmp_path / "good.zip")
    content = read_bundle(tmp_path / "good.zip").members["wts.h5"]
    pack_bundle(tmp_path / "wts.h5.zip", {"config.json": data, "wts.h5": content}, LINEAGE)
    with pytest.raises(BundleError, match=f"config.json: {said}"):
        load_bundle(tmp_path / "wts.h5.zip")
