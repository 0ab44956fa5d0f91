"""Every failure that a user can cause, grouped by what they would do about it.

::

    PipelineError                        exit
    ├── ConfigError(ValueError)             2   fix the option or the config key it names
    ├── PlanError(ValueError)               2   such groups or batches cannot be cut from this scan
    ├── SourceError(ValueError)             4   fix or describe the NPZ: unreadable, ambiguous, unknown unit
    ├── SchemaError(ValueError)             4   the scan breaks the schema: every violation is listed
    ├── NotFoundError(FileNotFoundError)    5   nothing is there
    ├── IntegrityError(ValueError)          6   bytes differ from what was promised
    │   └── BundleError(ValueError)         6   weights, configuration and store do not belong together
    ├── TargetExistsError(FileExistsError)  7   choose another path or pass --overwrite
    ├── LockedError(OSError)                7   another process is at work there
    ├── EnvironmentFault(OSError)           8   no space, a missing extra
    ├── DivergedError(ArithmeticError)      1   a solve met numbers that are not finite
    ├── InterruptedRun(RuntimeError)      130   stopped by the user; the hint says how to go on
    └── TerminatedRun(RuntimeError)       143   the same, stopped by the system

`code` is a stable, machine-readable name ("npz.ambiguous_axes"); `hint` is the option or command that
settles it. `pipeline.cli` alone catches `PipelineError`.
"""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """What went wrong, where, what was found and what was expected; `hint` says what settles it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str = "worker", hint: str | None = None) -> None:
        # a DataLoader makes the error of a worker anew from its text alone, hence the default
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default reduction, and errors cross process borders
        return (_rebuild, (type(self), self.message, self.code, self.hint))


def _rebuild(kind: type[PipelineError], message: str, code: str, hint: str | None) -> PipelineError:
    return kind(message, code=code, hint=hint)


class ConfigError(PipelineError, ValueError):
    """An option or configuration key is unknown, out of range or contradicts another; `keys` are those concerned."""

    exit_code = 2

    def __init__(
        self, message: str, *, code: str = "worker", hint: str | None = None, keys: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.keys = keys


class PlanError(PipelineError, ValueError):
    """Such batches or groups cannot be cut from this scan."""

    exit_code = 2


class SourceError(PipelineError, ValueError):
    """A source file is unreadable or its meaning is not certain."""

    exit_code = 4


class SchemaError(PipelineError, ValueError):
    """A scan breaks the schema."""

    exit_code = 4


class NotFoundError(PipelineError, FileNotFoundError):
    """Nothing is at the given place."""

    exit_code = 5


class IntegrityError(PipelineError, ValueError):
    """Bytes differ from what was promised."""

    exit_code = 6


class BundleError(IntegrityError):
    """A bundle's bytes were changed, or its weights, configuration and store do not belong together."""


class TargetExistsError(PipelineError, FileExistsError):
    """The target is there already, with other content."""

    exit_code = 7


class EnvironmentFault(PipelineError, OSError):
    """The machine cannot do it: no space, no permission, a missing extra."""

    exit_code = 8


class LockedError(PipelineError, OSError):
    """Another process is at work there."""

    exit_code = 7


class DivergedError(PipelineError, ArithmeticError):
    """A computation met numbers that are not finite; names the step."""

    exit_code = 1


class InterruptedRun(PipelineError, RuntimeError):  # no error of anybody's
    """A run was stopped by the user and kept its state."""

    exit_code = 130


class TerminatedRun(PipelineError, RuntimeError):
    """A run was stopped by the system and kept its state."""

    exit_code = 143
