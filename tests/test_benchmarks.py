"""Benchmarks run at tiny size, so that they cannot rot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import convert, formats


def test_the_conversion_benchmark_measures_all_three_programs(tmp_path: Path) -> None:
    rows = convert.measure(tmp_path, n_frames=8, side=16, photons=1e3, repeats=1)
    assert len(rows) == 6
    for row in rows:
        assert {row[program]["cpu"] > 0 for program in convert.PROGRAMS} == {True}


def test_the_table_of_formats_finds_every_stack_exact() -> None:
    table = formats.table(8, 32, doses=(1e3,))
    assert table.count("bit for bit") == 16
    assert "not exact" not in table


def test_benchmark_counts_are_about_as_bright_as_asked_for() -> None:
    counts = convert.make_counts(64, 32, 1e4)
    np.testing.assert_allclose(counts.sum(axis=(1, 2)).mean(), 1e4, rtol=0.02)
