"""Corpora for the readers' tests: read as a run reads them, task after task."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizer.corpus.readers import Document, ReadOptions, read_documents
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.task_plan import plan_tasks

Found = list[Document | Rejection]


def read(inputs: Sequence[str | Path] | Path, **options: Any) -> Found:
    """Everything that a corpus holds, in order."""
    given = [inputs] if isinstance(inputs, Path) else inputs
    reading = ReadOptions(**options)
    plan = plan_tasks([str(path) for path in given], reading)
    return [found for task in plan.tasks for found in read_documents(task, reading)]


def texts(found: Found) -> list[str]:
    return [document.text for document in found if isinstance(document, Document)]


def rejections(found: Found) -> list[tuple[str, str]]:
    """(place, reason) of each."""
    return [(item.place, item.reason) for item in found if isinstance(item, Rejection)]


def lines(*given: str) -> bytes:
    """JSON Lines of these texts."""
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in given)


def read_in_child(inputs: Sequence[Path], *, as_user: int | None = None, **options: Any) -> tuple[list[Any], int]:
    """Counts of documents by reason ("text" for those that are good) in a process of its own, and its peak memory in bytes."""
    program = "import sys, json; from tests.support.corpora import report; report(*json.loads(sys.argv[1]))"
    arguments = json.dumps([[str(path) for path in inputs], options, as_user])
    ended = subprocess.run(
        [sys.executable, "-c", program, arguments], check=True, capture_output=True, text=True, timeout=500
    )
    counts, peak = json.loads(ended.stdout)
    return counts, peak


def report(inputs: list[str], options: dict[str, Any], as_user: int | None) -> None:
    """The child of `read_in_child`: prints [[place, reason], …] without texts, and the peak of its memory above the start's."""
    reading = ReadOptions(**options)
    plan = plan_tasks(inputs, reading)
    import pyarrow.parquet  # noqa: F401 - so that it counts as the start's
    import zstandard  # noqa: F401

    if as_user is not None:
        os.setuid(as_user)
    start = _peak_bytes()
    found: list[Any] = []
    for task in plan.tasks:
        for item in read_documents(task, reading):
            found.append([item.place, item.reason if isinstance(item, Rejection) else "text"])
    print(json.dumps([found, _peak_bytes() - start]))


def _peak_bytes() -> int:
    """Of this program; getrusage would count the one that started it too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
