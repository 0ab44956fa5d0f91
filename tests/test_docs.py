"""Docs say what is true: snippets run, every command and option is listed, links lead somewhere.

`python tests/test_docs.py` writes docs/commands.md anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import VERBS
from tests.guards import REPOSITORY, run_command

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")])
PAGES_TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = REPOSITORY / "docs" / "commands.md"
SPELLED = (
    "converters.inspect", "converters.npz2zarr", "converters.zarr2npz", "pipeline.verify", "pipeline.iterate",
    "pipeline.reconstruct", "pipeline.train", "pipeline.simulate", "pipeline.study",
    "pipeline.study design", "pipeline.study generate", "pipeline.study overlap", "pipeline.study train",
    "pipeline.study verify", "pipeline.study status", "catalogs", "catalogs list", "catalogs show",
)  # fmt: skip


def snippets(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands_page() -> str:
    """docs/commands.md: every command's own help, and the exit codes."""
    helps = []
    for command in SPELLED:
        text = run_command(*command.split(), "--help", COLUMNS="100").stdout.rstrip()
        helps.append(f"## python -m {command}\n\n```\n{text}\n```")
    codes = (
        "| exit code | meaning |\n| --- | --- |\n| 0 | done, whole, verified and on disk; `inspect`: convertible |\n"
        "| 1 | failed |\n| 2 | usage: an option or a configuration key |\n"
        "| 3 | done with findings: a member came back cast, a listed store or run is broken, a job of a study failed;"
        " `inspect`: needs an option"
        " |\n"
        "| 4 | bad or ambiguous input |\n| 5 | not found |\n| 6 | bytes differ from what was promised |\n"
        "| 7 | the target exists with other content |\n| 8 | the machine: no space, no permission, a missing extra |\n"
        "| 130, 143 | interrupted, terminated |\n"
    )
    head = (
        "# Commands\n\nMade by `python tests/test_docs.py`; a test compares it with the commands.\n\n"
        "Results go to stdout, everything else to stderr. `--json` prints exactly one object: "
        '`{"schema", "ok": true, "data", "warnings"}`, or '
        '`{"ok": false, "error": {"code", "message", "hint", "exit"}}`. '
        "After any exit code but 0 and 3 the target is untouched.\n\n"
        'What a legacy file does not tell may be declared by options or, with the same names (`axes = "yxf"`, '
        "`pixel_size_m = 2e-8`), in `NAME.toml` beside `NAME.npz`. An option wins.\n\n"
    )
    return head + codes + "\n" + "\n\n".join(helps) + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that README and tour have made before."""
    made = tmp_path_factory.mktemp("made")
    make = ("pipeline.simulate", "--recipe", "demo", "--quantity", "scaled-amplitude", "--axes", "yxf", "--output")
    (made / "demo-out").mkdir()
    assert run_command(*make, made / "scan.npz").returncode == 0
    shutil.copy(made / "scan.npz", made / "demo-out")
    done = run_command("converters.npz2zarr", made / "demo-out/scan.npz", made / "demo-out/scan.zarr")
    assert done.returncode == 0
    return made


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Where the snippets run."""
    return Path(shutil.copytree(made, tmp_path / "here"))


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_the_snippets_of_a_page_run_in_order(page: Path, folder: Path) -> None:
    script = "\n".join(snippets(page))
    if "load_bundle" in script:
        short = ("--steps", "2", "--batch-size", "64", "--set", "solver.iterations=2", "--set",
                 "solver.start_iterations=1", "--set", "network.width=4", "--refine", "none", "--prior", "tv",
                 "--quiet")  # fmt: skip
        pytest.importorskip("torch", reason="the extra `train` is not installed")
        for run in {*re.findall(r"(\w+)/wts\.h5\.zip", script)}:
            model = ("--model", "patch") if run == "PATCHES" else ()
            told = run_command(
                "pipeline.train", folder / "demo-out/scan.zarr", "--output", folder / run, *short, *model
            )
            assert told.returncode == 0, told.stderr
    if any(f"import {name}" in script or f"from {name}" in script for name in ("torch", "pipeline.learning")):
        pytest.importorskip("torch", reason="the extra `train` is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_page_is_what_the_commands_say() -> None:
    assert COMMANDS.read_text(encoding="utf-8") == commands_page()


def test_every_verb_of_the_console_script_is_spelled_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"`ptychozarr ([a-z|]+)`", readme)
    assert sorted(listed.split("|")) == sorted(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_and_pictures_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def masked(text: str) -> list[str]:
    """Lines without what differs between machines and runs: digests, numbers, trailing blanks."""
    text = re.sub(r"[0-9a-f]{12,}", "HASH", text)
    return [re.sub(r"\d[\d,.e+-]*", "N", line).rstrip() for line in text.strip().splitlines()]


def demo_output(folder: Path) -> str:
    """What the demo prints; $PTYCHOZARR_DEMO_LOG names the output of a run that was made already."""
    if "PTYCHOZARR_DEMO_LOG" in os.environ:
        text = Path(os.environ["PTYCHOZARR_DEMO_LOG"]).read_text(encoding="utf-8")
        return text[text.index("# A legacy file") :]
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    demo = [sys.executable, str(REPOSITORY / "examples" / "demo.py")]
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(demo, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    printed = demo_output(tmp_path)
    shown = re.search(r"^```\n(# A legacy file.*?)^```", PAGES_TEXT["README.md"], re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert masked(shown.group(1)) == masked(printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_page_holds_a_word_in_place_of_an_output(page: Path) -> None:
    assert re.findall(r"^[A-Z]{4,}$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_every_term_of_the_error_tree_is_documented() -> None:
    import pipeline.errors as errors

    tree = errors.__doc__ or ""
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.PipelineError)]
    for kind in kinds:
        assert kind.__name__ in tree
        if kind is not errors.PipelineError:
            assert re.search(rf"{kind.__name__}\(\w+\) +{kind.exit_code} ", tree), kind


if __name__ == "__main__":
    COMMANDS.write_text(commands_page(), encoding="utf-8")
