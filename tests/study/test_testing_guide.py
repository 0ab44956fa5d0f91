"""docs/TESTING_GUIDE.md lists selectors that select, and commands that there are."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from tests.guards import REPOSITORY, command_named

GUIDE = (REPOSITORY / "docs" / "TESTING_GUIDE.md").read_text(encoding="utf-8")
SELECTORS = re.findall(r"^pytest (.+)$", GUIDE, re.MULTILINE)
COMMANDS = re.findall(r"^python -m (.+)$", GUIDE, re.MULTILINE)


def test_every_selector_of_the_guide_collects_something() -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    assert len(SELECTORS) > 8
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "tests/torch", "tests/study"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    for selector in SELECTORS:
        place, *option = selector.split()
        inside = [node for node in nodes if node.startswith(place)]
        if option[:1] == ["-k"]:
            inside = [node for node in inside if option[1] in node]
        assert inside, selector


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that some words name, and the rest of them."""
    module, *rest = words
    command: click.Command | None = command_named(module)
    if isinstance(command, click.Group):
        verb, *rest = rest
        command = command.get_command(click.Context(command), verb)
    assert command is not None
    return command, rest


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_guide_takes_its_options(line: str) -> None:
    command, rest = command_of(line.split())
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    typed = {word for word in rest if word.startswith("--")}
    assert typed <= options, typed - options
