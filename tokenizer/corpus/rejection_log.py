"""Documents left out of a corpus, counted by file and reason: a line each in `problems.jsonl`, and limits on what is bad.

    {"file": "web/part-07.jsonl", "reason": "broken JSON", "count": 3, "place": "web/part-07.jsonl:812", "detail": "…"}

`place` and `detail` are those of the first document. Reasons that do not speak against a corpus (`ORDINARY_REASONS`: an
empty file, an image in a source tree) are counted but not limited. A damaged file (`DAMAGED_REASONS`) may have lost any number
of documents: it has a limit of its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.errors import DataError
from tokenizer.corpus.readers.rejections import DAMAGED_REASONS, HINTS, ORDINARY_REASONS, TRY, Rejection

DUPLICATE = "duplicate"
HELD_OUT, TRAINED_ON = "held out", "trained on"  # in the other part (encoding/holdout.py)
LOSSY = "lost by the tokenizer"
SHOWN = 10
_NOT_BAD = ORDINARY_REASONS | {DUPLICATE, HELD_OUT, TRAINED_ON}


@dataclass
class RejectionCount:
    """Documents of one file left out for one reason; `place` and `detail` of the first. Its fields are JSON keys."""

    file: str
    reason: str
    count: int
    place: str
    detail: str

    @property
    def bad(self) -> bool:
        """Whether these documents, or this file, count against a limit."""
        return self.reason not in _NOT_BAD

    @property
    def damaged(self) -> bool:
        """Whether this is a file, or the rest of one, rather than a document."""
        return self.reason in DAMAGED_REASONS


class RejectionLog:
    """Counts by file and reason, in order of first occurrence; the first ten bad documents, and all damaged files."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], RejectionCount] = {}
        self.first_bad: list[Rejection] = []
        self.bad = 0
        self.damaged: dict[str, RejectionCount] = {}

    def __iter__(self) -> Iterator[RejectionCount]:
        return iter(self._counts.values())

    def add(self, file: str, rejection: Rejection) -> None:
        """Count one document of `file`."""
        entry = RejectionCount(file, rejection.reason, 1, rejection.place, rejection.detail)
        self._add(entry)
        if entry.bad and len(self.first_bad) < SHOWN:
            self.first_bad.append(Rejection(*rejection))

    def merge(self, later: "RejectionLog") -> None:
        """Add the counts of a later part of the corpus."""
        for entry in later:
            self._add(entry)
        self.first_bad += later.first_bad[: SHOWN - len(self.first_bad)]

    def _add(self, entry: RejectionCount) -> None:
        known = self._counts.get((entry.file, entry.reason))
        if known is None:
            self._counts[entry.file, entry.reason] = RejectionCount(**vars(entry))
        else:
            known.count += entry.count
        if entry.damaged:
            self.damaged.setdefault(entry.file, entry)
        elif entry.bad:
            self.bad += entry.count

    @property
    def unusable(self) -> int:
        """Bad documents and damaged files together, for a corpus with one limit for both."""
        return sum(entry.count for entry in self if entry.bad)

    @property
    def counts(self) -> dict[str, int]:
        """Documents left out by reason, sorted by reason."""
        counts: dict[str, int] = {}
        for entry in self:
            counts[entry.reason] = counts.get(entry.reason, 0) + entry.count
        return dict(sorted(counts.items()))

    def check_limits(self, max_bad_documents: int, max_bad_files: int) -> None:
        """Raise DataError, listing the first ten, for more than `max_bad_files` damaged files or `max_bad_documents`."""
        if len(self.damaged) > max_bad_files:
            shown = list(self.damaged.values())[:SHOWN]
            names = "".join(f"\n  - {Rejection(entry.place, entry.reason, entry.detail)}" for entry in shown)
            raise DataError(
                f"more than max_bad_files={max_bad_files} files are damaged{names}",
                hint="copy or download them again, or use what can be read of them with --max-bad-files "
                f"{len(self.damaged)} or more",
            )
        if self.bad > max_bad_documents:
            raise DataError(
                f"more than max_bad_documents={max_bad_documents} documents cannot be used{self._list_bad()}",
                hint=f"{self.hint(bad_only=True) or 'repair the corpus'}, or allow more with --max-bad-documents",
            )

    def summary(self) -> str:
        """Counts by reason and the first bad documents, to end an error message; empty if nothing was left out."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"; left out: {counts}{self._list_bad()}" if counts else ""

    def hint(self, *, bad_only: bool = False) -> str | None:
        """Advice on the most frequent reason; with `bad_only`, of those that count against a limit."""
        entries = [entry for entry in self if entry.bad or not bad_only]
        if not entries:
            return None
        most = max(entries, key=lambda entry: self.counts[entry.reason])
        _, found, advice = most.detail.rpartition(TRY)
        known = HINTS.get(most.reason)
        return f"{known}, for example {advice}" if known and found else known

    def _list_bad(self) -> str:
        return "".join(f"\n  - {rejection}" for rejection in self.first_bad)

    def lines(self) -> str:
        """The text of `problems.jsonl`."""
        return "".join(json.dumps(vars(entry)) + "\n" for entry in self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return {"files": [vars(entry) for entry in self], "first_bad": [list(bad) for bad in self.first_bad]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RejectionLog":
        """Inverse of `to_json`."""
        log = cls()
        for entry in value["files"]:
            log._add(RejectionCount(**entry))
        log.first_bad = [Rejection(*bad) for bad in value["first_bad"]]
        return log
