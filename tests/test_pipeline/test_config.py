"""What a configuration accepts, and how it says no."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import (
    PriorConfig,
    ReconstructConfig,
    RefineConfig,
    SolverConfig,
    TrainConfig,
    training_defaults,
    value_at,
)
from pipeline.errors import ConfigError
from pipeline.settings import flat, parse_setting, resolve_config, resolve_options, to_toml

CONFIGS = st.builds(
    ReconstructConfig,
    seed=st.integers(0, 2**40),
    threads=st.integers(1, 64),
    photons_per_frame=st.none() | st.floats(1e-3, 1e12),
    prior=st.builds(PriorConfig, name=st.sampled_from(["quadratic", "tv"]), weight=st.none() | st.floats(0, 1e3)),
    solver=st.builds(SolverConfig, iterations=st.integers(0, 999), step=st.floats(0.01, 1.99)),
    refine=st.builds(
        RefineConfig, what=st.sampled_from(["auto", "probe,positions"]), modes=st.none() | st.integers(1, 9)
    ),
)


@given(CONFIGS)
def test_a_tree_written_as_toml_is_read_back(config: ReconstructConfig) -> None:
    text = to_toml(config)
    assert resolve_config(ReconstructConfig, settings=_flat(tomllib.loads(text))) == config


def _flat(table: dict[str, object], place: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in table.items():
        found |= _flat(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
    return found


def test_settings_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[solver]\niterations = 7\nstep = 1\n")
    config = resolve_config(ReconstructConfig, file=path, settings={"solver.iterations": 9, "threads": None})
    assert config == replace(ReconstructConfig(), seed=3, solver=SolverConfig(iterations=9, step=1.0))


def test_what_a_run_finds_out_itself_is_no_setting(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[solver]\nloss = "amplitude"\n')
    with pytest.raises(ConfigError, match=r"unknown key 'solver\.loss'"):
        resolve_config(ReconstructConfig, file=path, settings={})
    assert "loss" not in to_toml(TrainConfig())


def test_what_is_not_given_stays_as_the_tree_wants_it() -> None:
    config = resolve_config(TrainConfig, settings={"stream.n_groups": 9})
    assert config == replace(TrainConfig(), stream=replace(TrainConfig().stream, n_groups=9))
    assert (config.stream.batch_size, config.stream.batches) == (192, "cluster")


@pytest.mark.parametrize(
    ("key", "hint"), [("solver.iteration", "solver.iterations"), ("sed", "seed"), ("refine.mode", "refine.modes")]
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'") as refused:
        resolve_config(ReconstructConfig, settings={key: 1})
    assert refused.value.hint == f"did you mean {hint}?"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("solver.iterations", "many", "solver.iterations = 'many'; expected int"),
        ("solver.iterations", 1.5, "expected int"),
        ("threads", True, "threads = True; expected int"),
        ("prior.name", "tvv", "expected auto or quadratic or tv"),
        ("refine.what", 1, "expected auto or none or probe or probe,positions"),
        ("photons_per_frame", "1e5", "expected float"),
        ("threads", 0, "threads = 0 is out of range"),
        ("solver.step", 2.5, "solver.step = 2.5 is out of range"),
        ("refine.modes", 0, "refine.modes = 0 is out of range"),
        ("photons_per_frame", float("nan"), "photons_per_frame = nan is out of range"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_names_its_key(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_config(ReconstructConfig, settings={key: value})


@pytest.mark.parametrize(
    ("sets", "flags", "said"),
    [
        (["solver.iteration=3"], {}, "--set solver.iteration: unknown key 'solver.iteration'"),
        (["solver.step=9"], {}, "--set solver.step: solver.step = 9.0 is out of range"),
        (["threads = many"], {}, "--set threads: threads = 'many'; expected int"),
        ([], {"threads": ("--threads", 0)}, "--threads: threads = 0 is out of range"),
        ([], {"refine.modes": ("--modes", 0)}, "--modes: refine.modes = 0 is out of range"),
        (["threads=0"], {"threads": ("--threads", -1)}, "--threads: threads = -1 is out of range"),
        (["threads=0", "seed=-1"], {"seed": ("--seed", 1)}, "--set threads: threads = 0 is out of range"),
        (["prior.weight=3"], {}, "--set prior.weight: prior.weight belongs to a kind"),
        (
            ["prior.weight=3"],
            {"prior.name": ("--prior", "auto")},
            "--set prior.weight and --prior: prior.weight belongs to a kind of prior",
        ),
    ],
)
def test_a_refusal_begins_with_what_was_typed(sets: list[str], flags: dict[str, tuple[str, object]], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_options(ReconstructConfig, file=None, sets=sets, flags=flags)
    assert refused.value.message.startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = 3\n", "unknown key 'sed'"),
        ("threads = 0\n", "threads = 0 is out of range"),
        ("[solver]\nstep = 'long'\n", "solver.step = 'long'; expected float"),
        ("threads = \n", "not valid TOML"),
    ],
)
def test_a_refusal_names_the_file_only_where_the_file_is_to_blame(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {said}')}"):
        resolve_options(ReconstructConfig, file=path, sets=["seed=1"], flags={})
    path.write_text("seed = 3\n")
    with pytest.raises(ConfigError, match=r"^--set thread: unknown key 'thread'$") as refused:
        resolve_options(ReconstructConfig, file=path, sets=["thread=1"], flags={})
    assert refused.value.hint == "did you mean threads?"


def test_a_value_that_something_else_overrules_is_not_blamed(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("threads = 0\n")
    config = resolve_options(ReconstructConfig, file=path, sets=["seed=-1"], flags={
        "threads": ("--threads", 2), "seed": ("--seed", 5), "solver.step": ("--step", None),
    })  # fmt: skip
    assert config == replace(ReconstructConfig(), threads=2, seed=5)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_options(ReconstructConfig, file=tmp_path, sets=[], flags={})


def test_a_weight_without_a_kind_of_prior_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match=r"prior\.name is auto") as refused:
        resolve_config(ReconstructConfig, settings={"prior.weight": 0.1})
    assert refused.value.code == "config.contradiction"


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("seed=3", ("seed", 3)),
        ("solver.step = 0.5", ("solver.step", 0.5)),
        ('prior.name="tv"', ("prior.name", "tv")),
        ("prior.name=tv", ("prior.name", "tv")),
        ("refine.what=probe,positions", ("refine.what", "probe,positions")),
    ],
)
def test_a_setting_is_a_dotted_key_and_a_value(text: str, setting: tuple[str, object]) -> None:
    assert parse_setting(text) == setting


def test_a_setting_without_a_value_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_setting("seed")
    with pytest.raises(ConfigError, match="no such file"):
        resolve_config(ReconstructConfig, file=tmp_path / "none.toml", settings={})


@pytest.mark.parametrize(
    ("flags", "sets", "length"),
    [
        ({"fit.steps": ("--steps", 100)}, [], (100, None)),
        ({"fit.epochs": ("--epochs", 3)}, [], (1000, 3)),
        ({}, ["fit.steps=7"], (7, None)),
        ({}, [], (1000, 50)),
    ],
    ids=["--steps", "--epochs", "--set", "nothing typed"],
)
def test_a_length_that_was_typed_replaces_that_of_a_file(
    flags: dict[str, tuple[str, object]], sets: list[str], length: tuple[int, int | None], tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(training_defaults("cnn")))
    fit = resolve_options(TrainConfig, file=file, sets=sets, flags=flags).fit
    assert (fit.steps, fit.epochs) == length


def test_steps_and_epochs_are_one_too_many() -> None:
    flags = {"fit.steps": ("--steps", 100), "fit.epochs": ("--epochs", None)}
    with pytest.raises(ConfigError, match=r"--steps and --set fit\.epochs:") as failure:
        resolve_options(TrainConfig, file=None, sets=["fit.epochs=2"], flags=flags)
    assert failure.value.exit_code == 2


@pytest.mark.parametrize(("key", "value"), [("stream.neighbors_within", "window"), ("stream.n_subsample", 5)])
def test_what_may_be_left_open_is_taken_written_and_read_back(key: str, value: object) -> None:
    given = {"model": "patch", "stream.gridsize": 2, key: value}
    config = resolve_config(TrainConfig, settings=given)
    assert value_at(config, key) == value
    assert resolve_config(TrainConfig, settings=flat(tomllib.loads(to_toml(config)))) == config
    with pytest.raises(ConfigError, match="expected"):
        resolve_config(TrainConfig, settings={**given, key: "scan"})
