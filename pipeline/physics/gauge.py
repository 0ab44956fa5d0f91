"""The scale in which the solver's constants hold: intensities in photons, a blank object of 0.7.

Frames fix the product of probe and object, not their scales, and files hold probes of any scale. So photons come
first, then the probe is multiplied by what makes a blank object (a flat one that passes as much light as the frames
hold) equal to `BLANK`, and the result is brought back when it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from pipeline.errors import ConfigError, SchemaError

BLANK: Final = 0.7
"""Transmission of the blank object in the solver's gauge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """What leads from the source's scale to the solver's; `blank_in_source` is c0, the blank object of the source.

    c0 = mean over frames of sqrt(sum I / sum |FFT P|^2), sums over good pixels and modes: with no bad pixel the same
    as sqrt(sum I / sum |P|^2) (Parseval).
    """

    blank_in_source: float

    def __post_init__(self) -> None:
        if not 0 < self.blank_in_source < float("inf"):
            raise SchemaError(
                f"a blank object would be {self.blank_in_source}: probe and frames must hold light, both finite",
                code="physics.no_light",
            )

    @property
    def probe_factor(self) -> float:
        """What the source's probe is multiplied by: c0 / 0.7."""
        return self.blank_in_source / BLANK

    def probe_to_solver(self, probe: Tensor) -> Tensor:
        """The probe in sqrt(photon) for a blank object of 0.7. Any shape and complex dtype, kept."""
        return probe * self.probe_factor

    def probe_to_source(self, probe: Tensor) -> Tensor:
        """The inverse of `probe_to_solver`."""
        return probe / self.probe_factor

    def object_to_source(self, obj: Tensor) -> Tensor:
        """The solver's object beside the source's own probe. Any shape and complex dtype, kept."""
        return obj * self.probe_factor

    def object_to_solver(self, obj: Tensor) -> Tensor:
        """The inverse of `object_to_source`."""
        return obj / self.probe_factor


def photons(amplitude: Tensor, *, photons_scale: float) -> Tensor:
    """Photons per pixel from amplitudes in the source's scale, (amplitude x photons_scale)^2. Shape, dtype kept."""
    return (amplitude * photons_scale).square_()


def scale_to_dose(mean_energy: float, *, photons_per_frame: float) -> float:
    """The `photons_scale` with which frames hold so many photons on average.

    Parameters
    ----------
    mean_energy : mean over frames of the sum of amplitude^2, in the source's scale.
    photons_per_frame : declared by the user; 1e5 where the scale is unknown (then with the amplitude loss).

    Raises
    ------
    ConfigError
        One of the two is not a positive number.
    """
    ratio = photons_per_frame / mean_energy if mean_energy > 0 else float("nan")
    if not 0 < ratio < float("inf"):
        raise ConfigError(
            f"{photons_per_frame} photons per frame cannot be reached from a mean energy of {mean_energy}; "
            "both must be positive",
            code="physics.no_light",
            hint="--photons-per-frame",
        )
    return float(ratio**0.5)
