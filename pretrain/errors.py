"""Every exception that the toolkit raises on purpose, and the exit code it ends a command with.

    PretrainError                    1  something failed that the user did not type
    ├── UserError                    2  the user's input is at fault; nothing was started
    │   ├── ConfigError                 one or more problems of a configuration, reported together
    │   ├── DataError                   a corpus, a tokenizer, a shard or a manifest is unusable
    │   └── CheckpointError             a checkpoint is missing, damaged, or does not fit the run
    ├── TrainingError                3  training cannot go on (a loss that is not finite, …)
    └── ExportError                  4  an export did not prove itself and was not published

An error says the value, the rule that it breaks, and what to do next (`hint`). A process that hangs is ended with 75, for
which nothing is raised (watchdog.py).
"""

from collections.abc import Sequence


class PretrainError(Exception):
    """Base of the tree. `hint` is printed on a line of its own."""

    exit_code = 1
    everywhere = False  # raised on every rank alike: one of them prints it

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UserError(PretrainError):
    """The input is at fault. Raised before any process group starts."""

    exit_code = 2


class ConfigError(UserError):
    """All problems of a configuration at once, each with its own hint."""

    def __init__(self, problems: Sequence[str], *, source: str = "") -> None:
        self.problems = list(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        head = f"{count} in the configuration{f' ({source})' if source else ''}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in problems)]))


class DataError(UserError):
    """A corpus, a tokenizer, a shard or a manifest that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the run."""


class TrainingError(PretrainError):
    """Training cannot go on."""

    exit_code = 3


class ExportError(PretrainError):
    """An export that did not prove itself. Nothing was published."""

    exit_code = 4
