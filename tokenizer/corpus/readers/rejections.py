"""What is left out of a corpus: counted by reason, named by file and line, and limited."""

from collections.abc import Iterable
from typing import NamedTuple

from pretrain.errors import DataError

COMPRESSED = "compressed or archive"
BINARY = "binary file"
EMPTY = "empty"
HIDDEN = "hidden"
NOT_REGULAR = "link or special file"
NO_TEXT_MEMBER = "not a text member"
FILTERED = "filtered out"
NO_FILTER_FIELD = "filter field missing or not comparable"
# A source tree is full of these (images, `__init__.py`), or the user asked for them: they are counted, but say nothing
# bad about the corpus.
ORDINARY_REASONS = frozenset(
    {COMPRESSED, BINARY, EMPTY, HIDDEN, NOT_REGULAR, NO_TEXT_MEMBER, FILTERED, NO_FILTER_FIELD}
)
SHOWN = 10


class Rejection(NamedTuple):
    """A document that was left out: where it lies (`file:line`), the reason it is counted under, and the detail."""

    place: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason} ({self.detail})"


def too_large(place: str, limit: int) -> Rejection:
    """The Rejection of a document over `limit` bytes."""
    return Rejection(place, "too large", f"over {limit} bytes")


class RejectionLog:
    """Counts rejections by reason, and keeps the first bad ones for messages."""

    def __init__(self, max_bad_documents: int | None = None) -> None:
        self.max_bad_documents = max_bad_documents
        self.bad = 0
        self.first_bad: list[Rejection] = []
        self._counts: dict[str, int] = {}

    def add(self, rejections: Iterable[Rejection]) -> None:
        """Count them. Raises DataError with the first ten bad documents as soon as there are more than the limit."""
        for rejection in rejections:
            self._counts[rejection.reason] = self._counts.get(rejection.reason, 0) + 1
            if rejection.reason in ORDINARY_REASONS:
                continue
            self.bad += 1
            if self.bad <= SHOWN:
                self.first_bad.append(rejection)
            if self.max_bad_documents is not None and self.bad > self.max_bad_documents:
                raise DataError(
                    f"more than max_bad_documents={self.max_bad_documents} documents cannot be used{self._listing()}",
                    hint="repair the corpus, or allow more with --max-bad-documents",
                )

    @property
    def counts(self) -> dict[str, int]:
        """Documents left out by reason, sorted by reason."""
        return dict(sorted(self._counts.items()))

    def summary(self) -> str:
        """One sentence, and the first bad documents, for the message that nothing is left; empty without rejections."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"; left out: {counts}{self._listing()}" if counts else ""

    def _listing(self) -> str:
        return "".join(f"\n  - {rejection}" for rejection in self.first_bad)
