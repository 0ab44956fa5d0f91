"""The nouns of a canonical store: one table of variables, one table of rules, the only place that checks them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.errors import SchemaError
from pipeline.scan.declaration import ORIGINS
from pipeline.scan.quantity import FORMULAS

if TYPE_CHECKING:
    import xarray as xr

FORMAT: Final = "ptychozarr/1"
RECONSTRUCTION_FORMAT: Final = "ptychozarr-reconstruction/1"
"""What a store says it is: a scan, or the object found from one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """One variable of the store: dims in order, allowed dtypes, units and what it is."""

    name: str
    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    units: tuple[str | None, ...] = (None,)
    required: bool = False
    long_name: str


SCAN_SCHEMA: Final = {
    v.name: v
    for v in (
        Variable(
            name="diffraction",
            dims=("frame", "detector_y", "detector_x"),
            dtypes=("uint16", "uint32", "float32"),
            units=("photon", "sqrt(photon)", "1"),
            required=True,
            long_name="diffraction frames",
        ),
        Variable(
            name="position_y",
            dims=("frame",),
            dtypes=("float64",),
            units=("pixel",),
            required=True,
            long_name="scan position, down",
        ),
        Variable(
            name="position_x",
            dims=("frame",),
            dtypes=("float64",),
            units=("pixel",),
            required=True,
            long_name="scan position, right",
        ),
        Variable(
            name="frame_index",
            dims=("frame",),
            dtypes=("int64",),
            required=True,
            long_name="index of the frame in the source",
        ),
        Variable(
            name="probe",
            dims=("probe_mode", "probe_y", "probe_x"),
            dtypes=("complex64",),
            long_name="complex illumination at the sample",
        ),
        Variable(
            name="object",
            dims=("object_y", "object_x"),
            dtypes=("complex64",),
            long_name="complex transmission of the sample",
        ),
        Variable(
            name="label",
            dims=("frame", "probe_y", "probe_x"),
            dtypes=("complex64",),
            long_name="complex object patch of each frame",
        ),
        Variable(name="valid", dims=("detector_y", "detector_x"), dtypes=("bool",), long_name="good detector pixels"),
        Variable(name="frame_valid", dims=("frame",), dtypes=("bool",), long_name="good frames"),
        Variable(name="frame_digest", dims=("frame",), dtypes=("uint64",), long_name="reserved"),
    )
}

QUANTITY_FORMS: Final = {
    "counts": (("uint16", "uint32"), ("photon",)),
    "amplitude": (("float32",), ("sqrt(photon)", "1")),
    "intensity": (("float32",), ("photon", "1")),
}
"""quantity -> (dtypes, units) of the stored `diffraction`."""

ROOT_ATTRIBUTES: Final = (
    "ptychozarr_format",
    "photons_scale",
    "amplitude_formula",
    "photons_per_frame",
    "pixel_size_m",
    "wavelength_m",
    "energy_eV",
    "detector_distance_m",
    "position_origin",
    "provenance",
    "validation",
)

RULES: Final = {
    "variable.required": "diffraction, position_y, position_x and frame_index are there",
    "variable.known": "every variable of the root group is in the schema",
    "variable.dims": "dimensions have the names and order of the schema",
    "variable.dtype": "dtypes are those of the schema",
    "variable.units": "units are those of the schema",
    "variable.nonempty": "no dimension is empty",
    "diffraction.quantity": "quantity is counts, amplitude or intensity, in the dtype and unit that belong to it",
    "probe.frame_size": "the probe is as large as a frame",
    "attribute.required": "every root attribute is there; unknown is null",
    "attribute.format": f"ptychozarr_format is {FORMAT}",
    "attribute.counts": "where counts are stored, amplitude_formula and photons_scale say how amplitude follows",
    "attribute.amplitude": "amplitude_formula is a known formula and photons_scale is positive, or both are null",
    "attribute.photons": "photons_per_frame has measured and declared, each a positive number or null",
    "attribute.length": "pixel_size_m, wavelength_m, energy_eV, detector_distance_m are positive or null",
    "attribute.origin": f"position_origin is one of {', '.join(ORIGINS)}",
}


def root_attributes(**known: object) -> dict[str, object]:
    """All root attributes of a store; those not given are null."""
    assert set(known) <= set(ROOT_ATTRIBUTES), known
    unknown: dict[str, object] = dict.fromkeys(ROOT_ATTRIBUTES)
    return {
        **unknown,
        "ptychozarr_format": FORMAT,
        "photons_per_frame": {"measured": None, "declared": None},
        "position_origin": "n/2",
        "provenance": {},
        "validation": {},
        **known,
    }


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that does not hold, where, and what was found."""

    rule: str
    found: str


def validate_scan(ds: xr.Dataset) -> xr.Dataset:
    """The same dataset (in stored form), proven to follow the schema. Reads no data.

    Raises
    ------
    SchemaError
        Lists every violation with its rule id.
    """
    found = list(violations(ds))
    if found:
        lines = "\n".join(f"  {v.rule}: {v.found}" for v in found)
        raise SchemaError(f"the scan breaks the schema in {len(found)} place(s):\n{lines}", code="scan.schema")
    return ds


def violations(ds: xr.Dataset) -> Iterator[Violation]:
    """Every rule that the dataset (in stored form) breaks. Reads no data."""
    for name, variable in SCAN_SCHEMA.items():
        if name in ds.variables:
            yield from _of_variable(ds, variable)
        elif variable.required:
            yield Violation("variable.required", f"no {name!r}")
    for unknown in set(ds.variables) - set(SCAN_SCHEMA):
        yield Violation("variable.known", f"{unknown!r}")
    if "diffraction" in ds.variables:
        yield from _of_quantity(ds)
    yield from _of_attributes(ds.attrs)
    probe_side = (ds.sizes.get("probe_y"), ds.sizes.get("probe_x"))
    frame_side = (ds.sizes.get("detector_y"), ds.sizes.get("detector_x"))
    if "probe" in ds.variables and "diffraction" in ds.variables and probe_side != frame_side:
        yield Violation("probe.frame_size", f"probe {probe_side}, frames {frame_side}")


def verdicts(ds: xr.Dataset) -> dict[str, str]:
    """Rule id -> "pass" or what was found; for the root attribute `validation`."""
    broken = {v.rule: v.found for v in violations(ds)}
    return {rule: broken.get(rule, "pass") for rule in RULES}


def _of_variable(ds: xr.Dataset, variable: Variable) -> Iterator[Violation]:
    array = ds.variables[variable.name]
    if tuple(array.dims) != variable.dims:
        yield Violation("variable.dims", f"{variable.name} has {tuple(array.dims)}, expected {variable.dims}")
    if array.dtype.name not in variable.dtypes:
        yield Violation("variable.dtype", f"{variable.name} is {array.dtype}, expected {' or '.join(variable.dtypes)}")
    if 0 in array.shape:
        yield Violation("variable.nonempty", f"{variable.name} has shape {array.shape}")
    units = array.attrs.get("units")
    if units not in variable.units:
        yield Violation("variable.units", f"{variable.name} has {units!r}, expected {variable.units}")


def _of_quantity(ds: xr.Dataset) -> Iterator[Violation]:
    array = ds.variables["diffraction"]
    quantity = array.attrs.get("quantity")
    if quantity not in QUANTITY_FORMS:
        yield Violation("diffraction.quantity", f"quantity is {quantity!r}")
        return
    if quantity == "counts" and ds.attrs.get("amplitude_formula") is None:
        yield Violation("attribute.counts", "amplitude_formula is null")
    dtypes, units = QUANTITY_FORMS[quantity]
    if array.dtype.name not in dtypes or array.attrs.get("units") not in units:
        yield Violation(
            "diffraction.quantity",
            f"{quantity} is stored as {array.dtype} in {array.attrs.get('units')!r}, expected {' or '.join(dtypes)} in "
            f"{' or '.join(map(repr, units))}",
        )


def _of_attributes(attrs: Mapping[Hashable, object]) -> Iterator[Violation]:
    for name in ROOT_ATTRIBUTES:
        if name not in attrs:
            yield Violation("attribute.required", f"no {name!r}")
    if attrs.get("ptychozarr_format") != FORMAT:
        yield Violation("attribute.format", f"{attrs.get('ptychozarr_format')!r}")
    scale, formula = attrs.get("photons_scale"), attrs.get("amplitude_formula")
    known = formula in FORMULAS and _positive(scale)
    if not known and not (formula is None and (scale is None or _positive(scale))):
        yield Violation("attribute.amplitude", f"amplitude_formula {formula!r}, photons_scale {scale!r}")
    photons = attrs.get("photons_per_frame")
    if (
        not isinstance(photons, Mapping)
        or set(photons) != {"measured", "declared"}
        or not all(v is None or _positive(v, zero=True) for v in photons.values())
    ):
        yield Violation("attribute.photons", f"{photons!r}")
    for name in ("pixel_size_m", "wavelength_m", "energy_eV", "detector_distance_m"):
        if attrs.get(name) is not None and not _positive(attrs[name]):
            yield Violation("attribute.length", f"{name} is {attrs[name]!r}")
    if attrs.get("position_origin") not in ORIGINS:
        yield Violation("attribute.origin", f"{attrs.get('position_origin')!r}")


def _positive(value: object, *, zero: bool = False) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < float("inf") and (zero or value > 0)
