"""A finished model as a file and back: weights and probe in HDF5, configuration and lineage beside them.

What is read is believed only after `read_bundle` has proven every byte, and the HDF5 after that only where it has the
one plain form that is written here: no link leads anywhere, no filter runs, nothing is larger than the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import h5py  # type: ignore[import-untyped]  # h5py has no types
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.errors import BundleError, ConfigError
from pipeline.learning.grouped import SeenBatch
from pipeline.learning.improvement import Improvement, improve_scan
from pipeline.learning.models import Network, network_of
from pipeline.learning.networks import UNet
from pipeline.physics.prior import Prior
from pipeline.scan.bundle import CONFIG, WEIGHTS, pack_bundle, read_bundle
from pipeline.scan.manifest import canonical_json
from pipeline.settings import restore_config
from pipeline.stream.scan_stream import Batch

WEIGHTS_GROUP: Final = "diffraction_to_obj"
SAME_GROUP: Final = "autoencoder"
PROBE: Final = "probe"
MODEL: Final = "model"

_LIBVER: Final = ("v108", "v108")  # checksums its metadata, and any HDF5 since 2008 reads it
_MAX_MODEL_NAME: Final = 64
_MAX_NAMED: Final = 6

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A finished model. Weights are float32, the probe is training's: (mode, N, N) complex64.

    model : which network it is. config : the resolved configuration. weights : by their names in the network.
    lineage : digests of store and source, order hashes. sha256 : of the file.
    """

    model: str
    config: Mapping[str, Any]
    weights: dict[str, Tensor]
    probe: Tensor
    lineage: Mapping[str, Any]
    sha256: str

    @property
    def prior(self) -> Prior:
        """Of the solves that the network was trained on, and always starts from."""
        found = self._config_of("prior", f"bundle {self.sha256[:12]}")
        return Prior(name=found["name"], weight=found["lam"])

    @property
    def training(self) -> TrainConfig:
        """The resolved configuration that it was trained with.

        Raises
        ------
        BundleError
            It is of another version.
        """
        return self._training(f"bundle {self.sha256[:12]}")

    def network(self, *, frame_side: int, where: str | None = None) -> Network:
        """The network with its weights, for scans of such frames. `where` names the bundle in errors.

        Raises
        ------
        BundleError
            It is of an unknown model or another frame size, or the weights are not those of its configuration.
        """
        where = where or f"bundle {self.sha256[:12]}"
        config = self._training(where)
        if self.model != config.model:
            raise BundleError(
                f"{where}: weights of the model {self.model!r}, configuration of {config.model!r}", code="bundle.model"
            )
        trained = self._config_of("frame_side", where)
        if trained != frame_side:
            raise BundleError(
                f"{where}: trained on frames of {trained} x {trained}, and the scan has {frame_side} x {frame_side}",
                code="bundle.frame_side",
                hint="a bundle trained on such frames",
            )
        network = network_of(config, side=frame_side)
        refuse_weights(self, {n: tuple(w.shape) for n, w in network.named_parameters()}, where=where)
        network.load_state_dict(self.weights)
        return network

    def improve(self, scan: Path | str, *, photons_per_frame: float | None = None) -> Improvement:
        """What the network makes of the store at `scan`, with seed, solver and refinement as in training.

        The probe is that of the store, or the bundle's own where the store has none. Solves the scan, so it takes as
        long as that; nothing is left on disk, and torch's global switches are as before.

        Parameters
        ----------
        photons_per_frame : the mean of the scan, where its store does not tell.

        Raises
        ------
        BundleError
            See `network`.
        NotFoundError, SourceError, IntegrityError, SchemaError, PlanError, ConfigError, DivergedError
            The scan cannot be opened or solved; see `open_scene` and `estimate`.
        """
        where = f"bundle {self.sha256[:12]}"
        return improve_scan(
            Path(scan),
            lambda side: self._canvas_network(side, where),
            prior=self.prior,
            config=self._training(where),
            probe=self.probe,
            photons_per_frame=photons_per_frame,
        )

    def diffraction_to_obj(
        self, scan: Path | str | Batch, *, photons_per_frame: float | None = None
    ) -> NDArray[np.complex64]:
        """What the network makes of photons, in the source's gauge.

        With the model canvas: the object (y, x) of the store at `scan`, with the bits of `object` in what
        `pipeline.reconstruct SCAN --bundle` leaves with training's settings (and the bundle's prior, where probe and
        positions are refined). `improve` tells its place on the grid too.

        With the models patch and cnn: the patches (B, C, S, S) of a `Batch` of a stream, at `Batch.positions`. The
        batch's own probe is used, or the bundle's where it has none; its amplitudes are of training's scale, and pixels
        that its `valid` calls bad say nothing.

        Parameters
        ----------
        photons_per_frame : of a store that does not tell; for the model canvas alone.

        Raises
        ------
        BundleError
            See `network`; or the model wants the other kind of scan, or groups of another size.
        """
        if isinstance(scan, Batch):
            return self._seen(scan, photons_per_frame).objects().numpy()
        return self._solved(scan, photons_per_frame).object

    @overload
    def autoencoder(self, scan: Batch) -> NDArray[np.float32]: ...

    @overload
    def autoencoder(
        self, scan: Path | str, *, photons_per_frame: float | None = None, batch_size: int = 64
    ) -> Iterator[NDArray[np.float32]]: ...

    def autoencoder(
        self, scan: Path | str | Batch, *, photons_per_frame: float | None = None, batch_size: int = 64
    ) -> Iterator[NDArray[np.float32]] | NDArray[np.float32]:
        """The amplitudes that the network's object predicts, in the source's gauge, zero frequency centred.

        With the model canvas: of the store at `scan`, batch after batch, see `Improvement.amplitudes`. The scan is
        solved before the first one; memory does not grow with the number of frames. With the models patch and cnn: of
        a `Batch`, (B, C, N, N), the patches of a group stitched together.

        Raises
        ------
        BundleError
            As `diffraction_to_obj`.
        """
        if isinstance(scan, Batch):
            return self._seen(scan, photons_per_frame).amplitudes().numpy()
        return self._solved(scan, photons_per_frame).amplitudes(batch_size=batch_size)

    def _solved(self, scan: Path | str, photons_per_frame: float | None) -> Improvement:
        if self.model != "canvas":
            raise BundleError(
                f"bundle {self.sha256[:12]}: the model {self.model} takes a Batch of a ScanStream, not a store",
                code="bundle.scan", hint="for the object of a store: python -m pipeline.reconstruct STORE --bundle",
            )  # fmt: skip
        return self.improve(scan, photons_per_frame=photons_per_frame)

    def _seen(self, batch: Batch, photons_per_frame: float | None) -> SeenBatch:
        where = f"bundle {self.sha256[:12]}"
        if self.model == "canvas":
            raise BundleError(f"{where}: the model canvas takes a whole store, not a Batch", code="bundle.scan")
        if photons_per_frame is not None:
            raise BundleError(
                f"{where}: photons_per_frame = {photons_per_frame:g} is for stores; the amplitudes of a Batch are "
                "of training's scale", code="bundle.scan", hint="leave photons_per_frame out",
            )  # fmt: skip
        members, gridsize = batch.indices.shape[1], self.training.stream.gridsize
        if members != gridsize**2:
            raise BundleError(
                f"{where}: groups of {members} frames, and the network was trained on groups of {gridsize**2}",
                code="bundle.gridsize", hint=f"a ScanStream with gridsize={gridsize}",
            )  # fmt: skip
        network = self.network(frame_side=batch.diffraction.shape[-1], where=where)
        assert not isinstance(network, UNet)
        known = self._config_of("gauge", where)
        return SeenBatch(
            config=self.training, network=network, batch=batch, trained_probe=self.probe,
            blank_in_source=known["blank_in_source"], photons_scale=known["photons_scale"],
            photons_per_frame=known["photons_per_frame"],
        )  # fmt: skip

    def _canvas_network(self, side: int, where: str) -> UNet:
        network = self.network(frame_side=side, where=where)
        if not isinstance(network, UNet):
            raise BundleError(f"{where}: the model {self.model} improves no solve", code="bundle.model")
        return network

    def _config_of(self, key: str, where: str) -> Any:
        if key not in self.config:
            raise BundleError(f"{where}: its {CONFIG} has no {key!r}", code="bundle.config")
        return self.config[key]

    def _training(self, where: str) -> TrainConfig:
        try:
            return restore_config(TrainConfig, self._config_of("configuration", where))
        except ConfigError as exc:
            raise BundleError(f"{where}: its {CONFIG} is not of this version: {exc}", code="bundle.config") from exc


def save_bundle(
    path: Path,
    *,
    model: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    probe: Tensor,
    lineage: Mapping[str, Any],
) -> str:
    """Write a bundle to `path`, whole and read back, or not at all; the SHA-256 of the file.

    The same arguments give the same bytes, in any process. A file there that already is this bundle is left as it is.

    Parameters
    ----------
    config, lineage : values that JSON can hold; no path, time, host or number of workers.

    Raises
    ------
    BundleError
        A weight is not finite float32, or the probe not finite complex64 (mode, N, N).
    TargetExistsError
        Something else is at `path`.
    """
    arrays = {name: weight.detach().cpu().contiguous().numpy() for name, weight in weights.items()}
    seen = probe.detach().cpu().contiguous().numpy()
    _refuse_values(str(path), arrays, seen)
    content = _encode(model, arrays, seen)
    model_back, weights_back, probe_back = _decode(str(path), content)
    assert model_back == model
    assert all(np.array_equal(weights_back[name], arrays[name]) for name in arrays)
    assert np.array_equal(probe_back, seen)
    return pack_bundle(path, {CONFIG: canonical_json(config), WEIGHTS: content}, lineage)


def load_bundle(path: Path | str, *, expected: Mapping[str, tuple[int, ...]] | None = None) -> Bundle:
    """The bundle at `path`, proven to be as it was written.

    Parameters
    ----------
    expected : shapes of the network's parameters by name, where they are known already; see `refuse_weights`.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no bundle.
    BundleError
        It was changed, or it does not hold what such a network needs: the member or weight is named.
    """
    path = Path(path)
    files = read_bundle(path)
    where = f"{path}: {WEIGHTS}"
    config = _config(path, files.members[CONFIG])
    model, arrays, probe = _decode(where, files.members[WEIGHTS])
    _refuse_values(where, arrays, probe)
    bundle = Bundle(
        model=model,
        config=config,
        weights={name: torch.from_numpy(array) for name, array in arrays.items()},
        probe=torch.from_numpy(probe),
        lineage=files.lineage,
        sha256=files.sha256,
    )
    if expected is not None:
        refuse_weights(bundle, expected, where=where)
    return bundle


def refuse_weights(bundle: Bundle, expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Refuse a bundle whose weights are not exactly those of a network with parameters of these shapes.

    Raises
    ------
    BundleError
        Names each weight that is missing, unknown, or of another shape.
    """
    found = {name: tuple(weight.shape) for name, weight in bundle.weights.items()}
    faults = [f"{name!r} is missing" for name in expected if name not in found]
    faults += [f"{name!r} is no weight of this network" for name in found if name not in expected]
    faults += [
        f"{name!r} has shape {found[name]}, the network {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != tuple(shape)
    ]
    if faults:
        more = f" and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
        raise BundleError(
            f"{where}: the weights are not those of its model {bundle.model!r}: {'; '.join(faults[:_MAX_NAMED])}{more}",
            code="bundle.weights",
            hint="it was made with another configuration or another version of the network",
        )


def _config(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        config = json.loads(data)
        if isinstance(config, dict) and canonical_json(config) == data:
            return config
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{path}: {CONFIG}: not JSON of ours: {exc}", code="bundle.config") from exc
    raise BundleError(f"{path}: {CONFIG}: not one canonical JSON object", code="bundle.config")


def _refuse_values(where: str, weights: Weights, probe: NDArray[np.complex64]) -> None:
    """What no model can be used with, written or read."""
    if not weights:
        raise BundleError(f"{where}: no weights", code="bundle.weights")
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise BundleError(f"{where}: weight {name!r} is {array.dtype}, not float32", code="bundle.weights")
        if not np.isfinite(array).all():
            raise BundleError(f"{where}: weight {name!r} holds numbers that are not finite", code="bundle.weights")
    if probe.dtype != np.complex64 or probe.ndim != 3 or probe.shape[1] != probe.shape[2] or not probe.size:
        raise BundleError(
            f"{where}: the probe is {probe.dtype} of shape {probe.shape}; complex64 (mode, N, N) is expected",
            code="bundle.probe",
        )
    if not np.isfinite(probe).all():
        raise BundleError(f"{where}: the probe holds numbers that are not finite", code="bundle.probe")


# --- HDF5


def _encode(model: str, weights: Weights, probe: NDArray[np.complex64]) -> bytes:
    """The bytes of wts.h5: no times, no padding that was not set, so the same content is the same file."""
    assert _names_a_model(model), model
    with h5py.File.in_memory(libver=_LIBVER, track_times=False) as file:
        group = file.create_group(WEIGHTS_GROUP, track_times=False)
        for name in sorted(weights):
            assert name
            assert "/" not in name, name
            group.create_dataset(name, data=weights[name], track_times=False)
        file[SAME_GROUP] = group
        file.create_dataset(PROBE, data=probe, track_times=False)
        file.attrs[MODEL] = np.bytes_(model)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _decode(where: str, data: bytes) -> tuple[str, dict[str, NDArray[Any]], NDArray[Any]]:
    """Model, weights and probe of a wts.h5, in whatever dtype they have."""
    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            return _read(where, file, len(data))
    except BundleError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as exc:  # what h5py makes of a damaged file
        raise _foreign(where, f"not HDF5 of ours: {ascii(str(exc))[1:161]}") from exc


def _read(where: str, file: h5py.File, file_bytes: int) -> tuple[str, dict[str, NDArray[Any]], NDArray[Any]]:
    root = dict(_children(where, file.id))
    if set(root) != {WEIGHTS_GROUP, SAME_GROUP, PROBE}:
        raise _foreign(where, f"it holds {_some(root)}, not {WEIGHTS_GROUP}, {SAME_GROUP} and {PROBE}")
    group, same = root[WEIGHTS_GROUP], root[SAME_GROUP]
    if not isinstance(group, h5py.h5g.GroupID) or group != same:
        raise _foreign(where, f"{SAME_GROUP} and {WEIGHTS_GROUP} are not one group under two names")
    model = _model(where, file)
    weights = {name: _dataset(where, name, item) for name, item in _children(where, group)}
    probe = _dataset(where, PROBE, root[PROBE])
    promised = sum(math.prod(d.shape) * d.dtype.itemsize for d in (*weights.values(), probe))
    if promised > file_bytes:  # many names for one dataset: a small file that fills the memory
        raise _foreign(where, f"its datasets take {promised} bytes, the file has {file_bytes}")
    return model, {name: _values(dataset) for name, dataset in weights.items()}, _values(probe)


def _children(where: str, group: Any) -> Iterator[tuple[str, Any]]:
    """What a group holds, opened. A link that is no plain name is refused before anything follows it."""
    for raw in group:
        name = raw.decode("utf-8", "backslashreplace")
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise _foreign(where, f"{name[:80]!r} is a link to another place")
        item = h5py.h5o.open(group, raw)
        if h5py.h5a.get_num_attrs(item):
            raise _foreign(where, f"{name[:80]!r} has attributes")
        yield name, item


def _dataset(where: str, name: str, item: Any) -> Any:
    """A dataset whose bytes lie in the file as they are."""
    if not isinstance(item, h5py.h5d.DatasetID) or item.shape is None:
        raise _foreign(where, f"{name[:80]!r} is no array")
    plan = item.get_create_plist()
    plain = plan.get_layout() == h5py.h5d.CONTIGUOUS and not plan.get_nfilters() and not plan.get_external_count()
    if not plain or item.dtype not in (np.float32, np.complex64):
        raise _foreign(where, f"{name[:80]!r} is {item.dtype}, or not stored as plain numbers inside the file")
    if item.get_storage_size() != math.prod(item.shape) * item.dtype.itemsize:
        raise _foreign(where, f"{name[:80]!r} of shape {item.shape} has {item.get_storage_size()} bytes")
    return item


def _values(item: Any) -> NDArray[Any]:
    values: NDArray[Any] = np.empty(item.shape, item.dtype)
    item.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _model(where: str, file: h5py.File) -> str:
    if list(file.attrs) != [MODEL]:
        raise _foreign(where, f"it has the attributes {_some(file.attrs)}, not {MODEL!r} alone")
    about = file.attrs.get_id(MODEL)
    is_text = about.shape == () and about.dtype.kind == "S"
    model = bytes(file.attrs[MODEL]).decode("ascii", "replace") if is_text else ""
    if not _names_a_model(model):
        raise _foreign(where, f"its attribute {MODEL!r} is no name of a network")
    return model


def _names_a_model(text: str) -> bool:
    return text.isascii() and text.isidentifier() and len(text) <= _MAX_MODEL_NAME


def _some(names: Iterable[str]) -> str:
    listed = [ascii(name)[:80] for name in names]
    return ", ".join(listed[:_MAX_NAMED]) + (", ..." if len(listed) > _MAX_NAMED else "") or "nothing"


def _foreign(where: str, found: str) -> BundleError:
    return BundleError(f"{where}: {found}", code="bundle.hdf5")
