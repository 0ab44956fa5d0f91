"""`python -m pipeline.simulate --output FILE`: a named simulation as a canonical store or a legacy NPZ."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import Outcome, command

_NPZ_OPTIONS = ("key", "axes", "quantity", "dtype", "probe_axes", "complex_dtype", "stored")
_DTYPES = ("uint8", "uint16", "uint32", "int32", "float32", "float64")


@command("ptychozarr.simulate/1")
@click.option("--output", type=click.Path(path_type=Path), help="NAME.zarr for a store, NAME.npz for a legacy file")
@click.option("--recipe", "recipe_name", default="mix", show_default=True, help="which simulation; `list` lists them")
@click.option("--like", type=click.Path(path_type=Path), help="take probe and positions from this store or NPZ")
@click.option("--seed", default=0, show_default=True, help="of object, positions and photons")
@click.option("--photons-per-frame", type=float, help="mean over the frames [default: the recipe's]")
@click.option("--overwrite", is_flag=True, help="replace what is at the output")
@click.option("--dry-run", is_flag=True, help="say what would be simulated; write nothing")
@click.option(
    "--key",
    default="diffraction",
    show_default=True,
    type=click.Choice(["diffraction", "diff3d"]),
    help="NPZ: the stack's name",
)
@click.option(
    "--axes", default="fyx", show_default=True, type=click.Choice(["fyx", "yxf", "fyx1"]), help="NPZ: the stack's axes"
)
@click.option(
    "--quantity",
    default="counts",
    show_default=True,
    type=click.Choice(["counts", "amplitude", "scaled-amplitude"]),
    help="NPZ: what the stack holds",
)
@click.option("--dtype", type=click.Choice(_DTYPES), help="NPZ: the stack's dtype [default: uint16 or float32]")
@click.option(
    "--probe-axes",
    default="yx",
    show_default=True,
    type=click.Choice(["yx", "myx", "yx1"]),
    help="NPZ: the probe's axes (several modes are always myx)",
)
@click.option(
    "--complex-dtype",
    default="complex64",
    show_default=True,
    type=click.Choice(["complex64", "complex128"]),
    help="NPZ: dtype of probe and object",
)
@click.option("--stored", is_flag=True, help="NPZ: members stored, not deflated")
def main(
    *,
    output: Path | None,
    recipe_name: str,
    like: Path | None,
    seed: int,
    photons_per_frame: float | None,
    overwrite: bool,
    dry_run: bool,
    key: str,
    axes: str,
    quantity: str,
    dtype: str | None,
    probe_axes: str,
    complex_dtype: str,
    stored: bool,
) -> Outcome:
    """Simulate a scan: object, probe, positions and photon noise of a named recipe.

    The same recipe, seed and versions give the same bytes on one machine. The NPZ options write the dialects
    that legacy tools wrote.
    """
    from pipeline.errors import ConfigError
    from pipeline.simulate.recipe import RECIPES, recipe_named
    from pipeline.simulate.scan import plan_simulation
    from pipeline.simulate.write import Dialect, write_legacy, write_store

    if recipe_name == "list":
        return Outcome(
            data={r.name: r.about for r in RECIPES.values()},
            text="\n".join(f"{r.name:<24} {r.about}" for r in RECIPES.values()),
        )
    if output is None or output.suffix not in (".zarr", ".npz"):
        raise ConfigError(f"{output or 'no --output'}: expected --output NAME.zarr or NAME.npz", code="simulate.output")
    spelled = _spelled_options()
    if output.suffix == ".zarr" and spelled:
        raise ConfigError(f"{', '.join(spelled)}: only an NPZ has these, {output} is a store", code="simulate.output")
    simulation = plan_simulation(recipe_named(recipe_name), seed=seed, photons_per_frame=photons_per_frame, like=like)
    n, side, _ = simulation.shape
    data = {
        "output": str(output),
        "recipe": recipe_name,
        "seed": seed,
        "frames": n,
        "frame_side": side,
        "photons_per_frame": simulation.photons_per_frame,
    }
    what = f"{output}: {recipe_name}, {n} frames of {side} x {side}, {simulation.photons_per_frame:g} photons a frame"
    if dry_run:
        return Outcome(data={**data, "status": "planned"}, text=f"{what} (nothing was written)")
    if output.suffix == ".npz":
        dialect = Dialect(
            key=key,
            axes=axes,
            quantity=quantity,
            probe_axes=probe_axes,
            complex_dtype=complex_dtype,
            dtype=dtype or ("uint16" if quantity == "counts" else "float32"),
            deflated=not stored,
        )
        write_legacy(simulation, output, dialect, overwrite=overwrite)
        return Outcome(data={**data, "status": "written"}, text=f"{what}, {quantity} under {key!r}")
    sha256, status = write_store(simulation, output, overwrite=overwrite)
    notes = [f"{output} holds this recipe with other bytes than this machine makes: it was made on other hardware"]
    return Outcome(
        data={**data, "status": status, "store_sha256": sha256},
        text=f"{what} ({status})\nstore_sha256 {sha256}",
        warnings=notes if status == "kept" else (),
    )


def _spelled_options() -> list[str]:
    """The NPZ options that were given on the command line."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return [f"--{name.replace('_', '-')}" for name in _NPZ_OPTIONS if context.get_parameter_source(name) == given]


if __name__ == "__main__":
    main()
