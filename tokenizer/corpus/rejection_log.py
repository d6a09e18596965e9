"""What is left out of a corpus, by file and reason: a line each in `problems.jsonl`, and a limit on bad documents.

    {"file": "web/part-07.jsonl", "reason": "broken JSON", "count": 3, "place": "web/part-07.jsonl:812", "detail": "…"}

`place` and `detail` are of the first one. Reasons that say nothing bad about a corpus (`ORDINARY_REASONS`: an empty file, an
image in a source tree) are counted, and have no limit.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.errors import DataError
from tokenizer.corpus.readers.rejections import ORDINARY_REASONS, SHOWN, Rejection

DUPLICATE = "duplicate"
_NOT_BAD = ORDINARY_REASONS | {DUPLICATE}


@dataclass
class Problem:
    """Documents of one file that were left out for one reason; `place` and `detail` of the first."""

    file: str
    reason: str
    count: int
    place: str
    detail: str

    @property
    def bad(self) -> bool:
        """Whether it counts against the limit."""
        return self.reason not in _NOT_BAD


class Problems:
    """Counts by file and reason, in the order in which they first came, and the first ten bad documents."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Problem] = {}
        self.first_bad: list[Rejection] = []
        self.bad = 0

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found.values())

    def add(self, file: str, rejection: Rejection) -> None:
        """Count one document of `file`."""
        problem = Problem(file, rejection.reason, 1, rejection.place, rejection.detail)
        self._add(problem)
        if problem.bad and len(self.first_bad) < SHOWN:
            self.first_bad.append(Rejection(*rejection))

    def merge(self, later: "Problems") -> None:
        """Count those of a later part of the corpus too."""
        for problem in later:
            self._add(problem)
        self.first_bad += later.first_bad[: SHOWN - len(self.first_bad)]

    def _add(self, problem: Problem) -> None:
        known = self._found.get((problem.file, problem.reason))
        if known is None:
            self._found[problem.file, problem.reason] = Problem(**vars(problem))
        else:
            known.count += problem.count
        self.bad += problem.count if problem.bad else 0

    @property
    def counts(self) -> dict[str, int]:
        """Documents left out by reason, sorted by reason."""
        counts: dict[str, int] = {}
        for problem in self:
            counts[problem.reason] = counts.get(problem.reason, 0) + problem.count
        return dict(sorted(counts.items()))

    def check_limit(self, max_bad_documents: int) -> None:
        """Raise DataError with the first ten bad documents if there are more than allowed."""
        if self.bad > max_bad_documents:
            raise DataError(
                f"more than max_bad_documents={max_bad_documents} documents cannot be used{self._listing()}",
                hint="repair the corpus, or allow more with --max-bad-documents",
            )

    def summary(self) -> str:
        """One sentence and the first bad ones, for the message that nothing is left; empty without any."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"; left out: {counts}{self._listing()}" if counts else ""

    def _listing(self) -> str:
        return "".join(f"\n  - {rejection}" for rejection in self.first_bad)

    def lines(self) -> str:
        """The text of `problems.jsonl`."""
        return "".join(json.dumps(vars(problem)) + "\n" for problem in self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return {"files": [vars(problem) for problem in self], "first_bad": [list(bad) for bad in self.first_bad]}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Problems":
        """What `to_json` gave."""
        problems = cls()
        for problem in value["files"]:
            problems._add(Problem(**problem))
        problems.first_bad = [Rejection(*bad) for bad in value["first_bad"]]
        return problems
