"""The design of a study is one checked value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, PlanError
from pipeline.study.design import Seeds, StudyDesign, View, design_from, read_design
from tests.study_roots import study, write_design


def test_the_design_of_always_is_that_of_the_old_study() -> None:
    design = StudyDesign()
    assert design.doses == (1e3, 1e4, 1e5)
    assert design.gridsizes == (1, 2)
    assert design.neighbor_count == 7
    assert {view.name: design.spacing_px(view) for view in design.views} == {"dense": 38.4, "sparse": 102.4}
    assert (design.split.axis, design.split.fraction) == ("y", 0.5)
    assert design.seeds == Seeds(simulation=42, grouping=123, subsampling=456)
    assert len(design.document()) == 9


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda name: name != "baseline")
shares = st.floats(0.01, 1)
designs = st.builds(
    StudyDesign,
    doses=st.lists(st.integers(1, 10**9).map(float), min_size=1, max_size=4, unique=True).map(tuple),
    patch_px=st.floats(1, 1000),
    views=st.lists(
        st.builds(View, name=names, overlap=st.floats(0, 0.99), s_img=shares), max_size=3, unique_by=lambda v: v.name
    ).map(tuple),
    seeds=st.builds(Seeds, grouping=st.integers(0, 2**31)),
)


@given(designs)
def test_a_design_comes_back_from_its_json(design: StudyDesign) -> None:
    assert design_from(json.loads(json.dumps(design.document()))) == design


def test_a_file_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    design = read_design(write_design(tmp_path / "d.toml", views={"half": {"overlap": 0.5, "s_img": 0.5}}))
    assert design.doses == (1000.0, 10000.0)
    assert [view.name for view in design.views] == ["half"]
    assert design.seeds == StudyDesign().seeds
    assert design.config_of(2).fit.steps == 3
    assert design.config_of(2).stream.neighbors == 7
    assert design.config_of(1).seed == 123


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"dose": [1]}, "did you mean doses"),
        ({"seeds": {"simulatoin": 1}}, "did you mean simulation"),
        ({"views": {"dense": {"overlap": 0.7, "simg": 1}}}, "did you mean s_img"),
        ({"views": {"dense": {"overlap": 0.7}}}, "no s_img"),
        ({"views": {"baseline": {"overlap": 0.7, "s_img": 1.0}}}, "views.baseline"),
        ({"views": {"dense": {"overlap": 1.0, "s_img": 1.0}}}, "views.dense.overlap"),
        ({"views": {"dense": {"overlap": 0.7, "s_img": 1.0, "spacing_px": 3.0}}}, "contradicts"),
        ({"doses": []}, "doses is empty"),
        ({"doses": [10.5]}, "doses"),
        ({"doses": [10, 10]}, "twice"),
        ({"gridsizes": [1.0]}, "whole numbers"),
        ({"split": {"fraction": 0.0}}, "split.fraction"),
        ({"split": {"axis": "z"}}, "y or x"),
        ({"training": {"model": "unet"}}, "canvas, patch or cnn"),
        ({"training": {"settings": {"fit": {"step": 1}}}}, "did you mean fit.steps"),
        ({"training": {"settings": {"seed": 1}}}, "said elsewhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(table: dict, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        design_from(table, where="study.toml: ")
    assert refused.value.message.startswith("study.toml: ")
    assert said in f"{refused.value.message} {refused.value.hint}"


def test_too_few_neighbours_for_a_group_are_refused_by_their_name() -> None:
    with pytest.raises(PlanError, match="OVERSAMPLING-001"):
        design_from({"neighbor_count": 3})
    assert design_from({"neighbor_count": 3, "gridsizes": [1]}).neighbor_count == 3


def test_the_command_prints_the_design_as_json_and_refuses_a_wrong_file(tmp_path: Path) -> None:
    done = study("design")
    assert json.loads(done.stdout) == StudyDesign().document()
    wrong = write_design(tmp_path / "d.toml", neighbor_count=3)
    done = study("design", "--design", wrong)
    assert done.returncode == 2
    assert "OVERSAMPLING-001" in done.stderr
