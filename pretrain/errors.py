"""Exceptions of the toolkit, and the exit codes of commands that end with them.

    PretrainError                    1  a failure that is not the user's input
    ├── UserError                    2  the user's input is at fault; nothing was started
    │   ├── ConfigError                 one or more problems of a configuration, reported together
    │   ├── DataError                   an unusable corpus, tokenizer, shard or manifest
    │   └── CheckpointError             a checkpoint that is missing, corrupt, or does not fit the run
    ├── TrainingError                3  training cannot continue (loss not finite, …)
    └── ExportError                  4  an export failed its verification and was not published

An error names the value, the rule that it breaks, and what to do next (`hint`). A hanging process exits with 75, without an
exception (health/watchdog.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PretrainError(Exception):
    """Base of the tree. `hint` is printed on a line of its own."""

    exit_code = 1
    everywhere = False  # raised on every rank: only rank 0 prints it

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UserError(PretrainError):
    """The user's input is at fault. Raised before any process group starts."""

    exit_code = 2


class ConfigError(UserError):
    """All problems of a configuration, each with its own hint."""

    def __init__(self, problems: Sequence[str], *, source: str = "") -> None:
        self.problems = list(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        head = f"{count} in the configuration{f' ({source})' if source else ''}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in problems)]))


class Together:
    """Independent checks whose errors are raised together: `with together.check(): …` for each, then `raise_all()`."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    @contextmanager
    def check(self) -> Iterator[None]:
        """Keep a UserError of the block, which ends there."""
        try:
            yield
        except UserError as error:
            self._errors.append(error)

    def raise_all(self) -> None:
        """Raise the error if there is one, several as one ConfigError."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise ConfigError([problem for error in self._errors for problem in _problems(error)])


def _problems(error: UserError) -> list[str]:
    if isinstance(error, ConfigError):
        return error.problems
    return [error.message if error.hint is None else f"{error.message}\n    hint: {error.hint}"]


class DataError(UserError):
    """An unusable corpus, tokenizer, shard or manifest."""


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, or does not fit the run."""


class TrainingError(PretrainError):
    """Training cannot continue."""

    exit_code = 3


class ExportError(PretrainError):
    """An export failed its verification. Nothing was published."""

    exit_code = 4
