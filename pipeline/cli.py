"""What every command shares: exit codes, the --json envelope, error form, signals, the lazy root group.

A command is a function decorated with `@command("ptychozarr.convert/1")` that takes parsed options and returns
an `Outcome`. Results go to stdout, everything else to stderr. Nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import functools
import importlib
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import click
from click.core import ParameterSource

from pipeline import __version__
from pipeline.errors import ConfigError, EnvironmentFault, PipelineError

VERBS = {
    "inspect": ("converters.inspect:main", "what a legacy NPZ is and would become"),
    "convert": ("converters.npz2zarr:main", "a legacy NPZ to a canonical store"),
    "restore": ("converters.zarr2npz:main", "a store back to its NPZ"),
    "verify": ("pipeline.verify:main", "re-hash everything that a store, bundle or run claims"),
    "iterate": ("pipeline.iterate:main", "go through a scan's batches, prove their order"),
    "reconstruct": ("pipeline.reconstruct:main", "a scan's frames to its object, with a report"),
    "train": ("pipeline.train:main", "a scan's frames to a network and its bundle"),
    "simulate": ("pipeline.simulate.__main__:main", "a named simulation as a store or NPZ"),
    "study": ("pipeline.study.__main__:main", "the dose x overlap x gridsize study, stage by stage"),
    "catalog": ("catalogs.__main__:main", "list stores and runs, look into one"),
}
"""Verb -> ("module:function", what it does): the one console script and the groups import a verb when it runs."""

Verbs = Mapping[str, tuple[str, str]]

EXTRAS = {
    "torch": "train",
    "h5py": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "distributed": "distributed",
}
"""Module -> the extra of this distribution that brings it."""

EXIT_FINDINGS = 3
"""Findings or partial success; of any other code but 0 an outcome is a failure (`ok` is false)."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says where a disk, or one's share of it, is full."""
PROGRESS_EVERY_S = 10.0
QUICK_S = 3.0
"""What is over sooner needs no line of progress."""
_NOTED_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a command found: `data` for programs, `text` for people, `exit_code` for shells."""

    data: Mapping[str, object]
    text: str
    exit_code: int = 0
    warnings: Sequence[str] = ()


Body = Callable[..., Outcome]


def as_typed(ctx: click.Context, *module: str) -> list[str]:
    """The command that does the same again: every argument and option that was typed, however the verb was reached."""
    return ["python", "-m", *module, *(word for _, words in _typed(ctx) for word in words)]


def _typed(ctx: click.Context) -> Iterator[tuple[str, list[str]]]:
    """Name and words of each argument and option that was typed, arguments first."""
    for parameter in sorted(ctx.command.params, key=lambda p: isinstance(p, click.Option)):
        assert parameter.name is not None
        if ctx.get_parameter_source(parameter.name) is not ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[parameter.name]
        values = value if parameter.multiple or parameter.nargs == -1 else [value]
        for one in values:
            option = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
            if one is False and parameter.secondary_opts:
                option = [parameter.secondary_opts[0]]
            yield parameter.name, option if isinstance(one, bool) else [*option, str(one)]


def command(schema: str) -> Callable[[Body], click.Command]:
    """Make a click command of a function that returns an `Outcome`; adds --json, --quiet, --debug."""

    def decorate(body: Body) -> click.Command:
        @click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
        @click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
        @click.option("--quiet", is_flag=True, help="No progress, no notes on stderr.")
        @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        @functools.wraps(body)
        def run(*, as_json: bool, quiet: bool, debug: bool, **options: Any) -> int:
            level = logging.ERROR if quiet else logging.INFO
            logging.basicConfig(stream=sys.stderr, format="%(message)s", level=level, force=True)
            with terminated_as_exit():
                outcome = body(**options)
            for warning in outcome.warnings:
                logging.warning("warning: %s", warning)
            if as_json:
                click.echo(json.dumps(_envelope(schema, outcome), allow_nan=False))
            elif outcome.text:
                click.echo(outcome.text)
            return outcome.exit_code

        assert isinstance(run, click.Command)
        return run

    return decorate


def _envelope(schema: str, outcome: Outcome) -> Mapping[str, object]:
    told: dict[str, object] = {"schema": schema, "ok": outcome.exit_code in (0, EXIT_FINDINGS), "data": outcome.data}
    if outcome.exit_code not in (0, EXIT_FINDINGS):
        message = outcome.text.partition("\n")[0]
        told["error"] = {"code": "findings", "message": message, "hint": None, "exit": outcome.exit_code}
    return {**told, "warnings": list(outcome.warnings)}


def refuse_with_resume(ctx: click.Context) -> None:
    """Refuse any other option beside --resume: a run that goes on keeps what it was begun with.

    Raises
    ------
    ConfigError
    """
    ours = {"resume", "as_json", "quiet", "debug"}
    others = [shlex.join(words) for name, words in _typed(ctx) if name not in ours]
    if others:
        raise ConfigError(
            f"--resume takes no other option, and here {'is' if len(others) == 1 else 'are'} {' and '.join(others)}",
            code="config.resume",
            hint="the run goes on with what it was begun with; begin a new one to change it",
        )


class _Command(click.Command):
    """A command whose failures are one message and one exit code (`error:` or the JSON envelope)."""

    def main(self, *args: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if not args or args[0] is None else args[0])
        sys.exit(_guarded(lambda: super(_Command, self).main(given, standalone_mode=False), given))


class _LazyGroup(click.Group):
    """A group whose verbs are "module:function" strings, each imported only when it runs."""

    def __init__(self, verbs: Verbs, **attrs: Any) -> None:
        super().__init__(**attrs)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return None
        module, name = self._verbs[cmd_name][0].split(":")
        loaded = getattr(importlib.import_module(module), name)
        assert isinstance(loaded, click.Command)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, about) for verb, (_, about) in self._verbs.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if not args or args[0] is None else args[0])
        sys.exit(_guarded(lambda: super(_LazyGroup, self).main(given, standalone_mode=False), given))


def lazy_group(help_text: str, verbs: Verbs) -> click.Group:
    """A command of several verbs; its --help imports none of them."""
    group = _LazyGroup(verbs, help=help_text, context_settings={"help_option_names": ["-h", "--help"]})
    return click.version_option(__version__, prog_name="ptychozarr")(group)


main = lazy_group("From legacy ptychography NPZ files to proven models.", VERBS)


def _guarded(run: Callable[[], Any], given: Sequence[str]) -> int:
    """The exit code of a run; its failure told on stderr, or on stdout as the JSON envelope."""
    as_json, debug = "--json" in given, "--debug" in given
    try:
        result = run()
    except PipelineError as exc:
        if debug:
            raise
        return _fail(exc.message, code=exc.code, hint=exc.hint, exit_code=exc.exit_code, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except click.UsageError as exc:
        hint = f"{exc.ctx.command_path} --help" if exc.ctx else None
        return _fail(exc.format_message(), code="usage", hint=hint, exit_code=2, as_json=as_json)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _fail("interrupted", code="interrupted", hint=None, exit_code=130, as_json=as_json)
    except ModuleNotFoundError as exc:
        module = (exc.name or "").partition(".")[0]
        if debug or module not in EXTRAS:
            raise
        message, hint = f"{module} is not installed", f"pip install 'ptychozarr[{EXTRAS[module]}]'"
        return _fail(message, code="environment.missing_extra", hint=hint, exit_code=8, as_json=as_json)
    except (OSError, MemoryError) as exc:
        if debug:
            raise
        fault = environment_fault(exc)
        return _fail(fault.message, code=fault.code, hint=fault.hint, exit_code=fault.exit_code, as_json=as_json)
    except Exception as exc:  # our own mistake, told in the form that callers parse
        if debug:
            raise
        message = f"internal error: {type(exc).__name__}: {exc}"
        return _fail(
            message, code="internal", hint="--debug shows where; please report it", exit_code=1, as_json=as_json
        )
    return result if isinstance(result, int) else 0


def _fail(message: str, *, code: str, hint: str | None, exit_code: int, as_json: bool) -> int:
    if as_json:
        error = {"code": code, "message": message, "hint": hint, "exit": exit_code}
        click.echo(json.dumps({"ok": False, "error": error}))
    else:
        click.echo(f"error: {message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
    return exit_code


def environment_fault(
    exc: OSError | MemoryError, *, where: Path | None = None, resume: str | None = None
) -> EnvironmentFault:
    """An operating system error as one of ours: no space, no memory, no permission, a failing disk (exit 8).

    Parameters
    ----------
    where : told where the error names no file. resume : the command that goes on afterwards.
    """
    if isinstance(exc, MemoryError):
        return EnvironmentFault(f"not enough memory: {exc}", code="environment.no_memory")
    place, full = exc.filename or where, exc.errno in NO_SPACE
    message = f"{place}: {exc.strerror or exc}" if place else str(exc.strerror or exc)
    code = "environment.no_space" if full else "environment.os_error"
    if resume is not None:
        hint: str | None = f"{'free some space' if full else 'mend that'}, then go on with: {resume}"
    else:
        hint = "free some space or choose another disk; nothing was left under the target name" if full else None
    return EnvironmentFault(message, code=code, hint=hint)


@contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind like an exception (exit 143), so that staging areas are removed."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the one who started us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Advance(Protocol):
    """Called with the amount just done, and a few words that stand behind it."""

    def __call__(self, done: int, note: str = "") -> None:
        """Count it."""

    def close(self) -> None:
        """Take what is shown off the terminal; nothing more comes."""


def progress(label: str, total: int, unit: str = "frame") -> Advance:
    """A function to call with the amount just done: a bar on a terminal, else a line every 10 s or 10 %."""
    if not logging.getLogger().isEnabledFor(logging.INFO):
        return _Silence()
    return _Bar(label, total, unit) if sys.stderr.isatty() else _Lines(label, total, unit)


class _Silence:
    def __call__(self, done: int, note: str = "") -> None:
        pass

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, label: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        self._bar, self._total = tqdm(total=total, desc=label, unit=unit, leave=False), total

    def __call__(self, done: int, note: str = "") -> None:
        if note:
            self._bar.bar_format = _NOTED_BAR
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done)
        if self._bar.n >= self._total:
            self.close()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total = label, total
        self._many = f"{unit}es" if unit.endswith("s") else f"{unit}s"
        self._done, self._told, self._at = 0, 0, time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        self._done += done
        now = time.monotonic()
        waited, tenth = now - self._at, self._done - self._told >= max(1, self._total // 10)
        if waited > PROGRESS_EVERY_S or (tenth and waited > QUICK_S):
            behind = f", {note}" if note else ""
            logging.info("%s: %d of %d %s%s", self._label, self._done, self._total, self._many, behind)
            self._told, self._at = self._done, now

    def close(self) -> None:
        pass


class Telling:
    """Progress of the phases of a run, each with its loss, speed, waiting for data and time left.

    Use it as a context, so that an error finds the terminal free.
    """

    def __init__(self, *, steps: Container[str] = ()) -> None:
        """The phases named in `steps` consist of those, all others of passes over the scan."""
        self._steps, self._total, self._done, self._note = steps, 0, 0, ""
        self._advance: Advance = _Silence()

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, *error: object) -> None:
        self._advance.close()

    def begin(self, name: str, total: int) -> Callable[[int], None]:
        """A phase begins; a function to call with the passes or steps just done."""
        self._total, self._done, self._note = total, 0, ""
        self._advance.close()
        self._advance = advance = progress(name, total, unit="step" if name in self._steps else "pass")

        def told(done: int) -> None:
            self._done += done
            advance(done, self._note)

        return told

    def hear(self, noted: Mapping[str, Any]) -> None:
        """What is known of the pass or step that is counted next.

        `loss` or `held_out_loss`; `passes` made in `wall_s` seconds, `wait_s` of them waiting; `frames` in each.
        """
        words, loss = [], noted.get("loss", noted.get("held_out_loss"))
        if loss is not None:
            words.append(f"loss {loss:.4g}")
        if noted["wall_s"] > 0:
            speed = noted["passes"] / noted["wall_s"]
            words.append(f"{speed * noted['frames']:,.0f} frames/s")
            words.append(f"data wait {100 * noted['wait_s'] / noted['wall_s']:.2g} %")
            words.append(f"{_duration((self._total - self._done - 1) / speed)} left")
        self._note = ", ".join(words)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
