"""Sampling documents of a corpus to train a tokenizer on, and documents held out to report on.

1. Each source (`NAME=PATH…`) has a budget of bytes: given, or a share of the rest in proportion to the source's size.
2. Small tasks of the source are read in a hash-shuffled order, one stretch of each, until READ_FACTOR times the budget was
   read: about 64 places spread over a large source, all of a small one.
3. Each document gets a hash of seed, source, task and its index in the task. The documents with the smallest hashes are
   the sample, up to the budget; the next ones are held out. Only these are in memory.
4. A held-out document whose text is also in the sample is dropped and counted.

The sample depends on the corpus, the budgets and the seed, not on the corpus's location. Of a compressed file longer than
a stretch only the beginning is read: it cannot be read from its middle.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256

from tokenizer.corpus.empty_inputs import refuse_empty_input
from tokenizer.corpus.file_summary import describe_files, describe_left_out
from tokenizer.corpus.readers import CorpusTask, Document, ReadOptions, read_part
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.corpus.task_plan import CorpusSource, plan_tasks
from tokenizer.models.splitting import split_hard
from tokenizer.training.budget import Budget, SampleSource

CHUNK_CHARACTERS = 4096
# At most this share of a source that is smaller than its budget is held out.
HELD_OUT_SHARE = 0.05
READ_FACTOR = 16
PLACES = 64
SMALLEST_TASK_BYTES = 4 << 20
DIGEST_BYTES = 8

Progress = Callable[[str, int, int], None]  # description of the step, bytes done, estimated bytes in total (0: unknown)


@dataclass
class SourceSample:
    """The sample of a source: chunks to train on, complete documents held out, and amounts read.

    `digests` has a digest of each sampled document's text; `whole` is true if all of the source was read; `files` and
    `files_left_out` describe its files (file_summary.py).
    """

    name: str
    budget: int
    chunks: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)
    documents: int = 0
    bytes: int = 0
    documents_read: int = 0
    bytes_read: int = 0
    tasks: int = 0
    tasks_read: int = 0
    whole: bool = False
    files: str = ""
    files_left_out: dict[str, str] = field(default_factory=dict)


def draw_samples(
    sources: Sequence[SampleSource],
    options: ReadOptions,
    *,
    budget: Budget,
    held_out_bytes: int,
    seed: int,
    problems: RejectionLog,
    max_bad_documents: int,
    max_bad_files: int = 0,
    progress: Progress | None = None,
) -> list[SourceSample]:
    """Draw a sample of each source, and hold out up to `held_out_bytes` of each.

    Raises DataError if a source cannot be planned or read, or has more bad documents or files than allowed.
    """
    # Smaller tasks than for encoding, so that a stretch from each of PLACES tasks covers the source evenly.
    stretch = READ_FACTOR * (budget.total + held_out_bytes) // PLACES
    small = min(max(stretch, SMALLEST_TASK_BYTES), options.task_bytes)
    options = replace(options, task_bytes=small)
    owner = [source.name for source in sources for _ in source.inputs]
    plan = plan_tasks([path for source in sources for path in source.inputs], options)
    plan.problems.check_limits(max_bad_documents, max_bad_files)
    tasks: dict[str, list[CorpusTask]] = {source.name: [] for source in sources}
    for task in plan.tasks:
        tasks[owner[task.source]].append(task)
    budgets = budget.divide({name: sum(task.text_bytes for task in own) for name, own in tasks.items()})
    return [
        sample_source(
            name,
            own,
            plan.sources,
            options,
            budget=budgets[name],
            held_out_bytes=held_out_bytes,
            seed=seed,
            problems=problems,
            max_bad_documents=max_bad_documents,
            max_bad_files=max_bad_files,
            progress=progress,
        )
        for name, own in tasks.items()
    ]


def sample_source(
    name: str,
    tasks: Sequence[CorpusTask],
    inputs: Sequence[CorpusSource],
    options: ReadOptions,
    *,
    budget: int,
    held_out_bytes: int,
    seed: int,
    problems: RejectionLog,
    max_bad_documents: int,
    max_bad_files: int = 0,
    progress: Progress | None = None,
) -> SourceSample:
    """Draw `budget` bytes of text, and `held_out_bytes` more. The same tasks and seed give the same documents.

    `inputs` are those that
    the tasks number. Raises DataError above `max_bad_documents` or `max_bad_files`, and for an input without documents.
    """
    sample = SourceSample(
        name, budget, tasks=len(tasks), files=describe_files(tasks), files_left_out=describe_left_out(tasks)
    )
    drawn = _SmallestHashes(budget + held_out_bytes)
    to_read = READ_FACTOR * (budget + held_out_bytes)
    expected = min(to_read, sum(task.text_bytes for task in tasks))
    stretch = to_read // min(max(len(tasks), 1), PLACES)
    # (task, number of its entries already read)
    waiting = [(number, 0) for number in sorted(range(len(tasks)), key=lambda n: _hash(seed, name, n))]
    begun: set[int] = set()
    left_out: defaultdict[int, RejectionLog] = defaultdict(RejectionLog)
    found_in: set[int] = set()
    while waiting and sample.bytes_read < to_read:
        number, skipped = waiting.pop(0)
        begun.add(number)
        entries, read = 0, 0
        for file, found in _entries(tasks[number], options):
            entries += 1
            if entries <= skipped:
                continue
            if isinstance(found, Rejection):
                left_out[tasks[number].source].add(file, found)
                problems.add(file, found)
                problems.check_limits(max_bad_documents, max_bad_files)
                continue
            drawn.add(_hash(seed, name, number, entries), found)
            found_in.add(tasks[number].source)
            sample.documents_read += 1
            sample.bytes_read += found.bytes
            read += found.bytes
            if progress is not None:
                progress(f"reading {name}", sample.bytes_read, expected)
            if read >= stretch:
                # Read on from here if one stretch of every task is not enough.
                waiting.append((number, entries))
                break
    sample.tasks_read, sample.whole = len(begun), not waiting
    for source in sorted({task.source for task in tasks} - found_in) if sample.whole else ():
        refuse_empty_input(inputs[source].input, left_out[source], single_file=inputs[source].single)
    _divide(drawn.in_order(), sample, held_out_bytes)
    return sample


def drop_held_out_duplicates(samples: Sequence[SourceSample]) -> int:
    """Drop held-out documents whose text is in any sample; returns their number."""
    known = set().union(*(sample.digests for sample in samples))
    return sum(drop_known(sample.held_out, known) for sample in samples)


def drop_known(texts: list[str], known: set[bytes]) -> int:
    """Drop texts whose digest is in `known`, in place; returns their number."""
    before = len(texts)
    texts[:] = [text for text in texts if digest(text) not in known]
    return before - len(texts)


def digest(text: str) -> bytes:
    """The first DIGEST_BYTES bytes of a text's SHA-256."""
    return sha256(text.encode()).digest()[:DIGEST_BYTES]


class _SmallestHashes:
    """The documents with the smallest hashes that together reach `limit` bytes, independent of insertion order."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._heap: list[tuple[int, int, str]] = []

    def add(self, rank: int, document: Document) -> None:
        heapq.heappush(self._heap, (-rank, document.bytes, document.text))
        self._bytes += document.bytes
        while self._heap and self._bytes - self._heap[0][1] >= self._limit:
            self._bytes -= heapq.heappop(self._heap)[1]

    def in_order(self) -> list[tuple[int, str]]:
        """(bytes, text) by ascending hash."""
        return [(size, text) for _, size, text in sorted(self._heap, key=lambda entry: -entry[0])]


def _entries(task: CorpusTask, options: ReadOptions) -> Iterator[tuple[str, Document | Rejection]]:
    for part in task.parts:
        for found in read_part(part, options):
            yield part.url, found


def _divide(documents: Sequence[tuple[int, str]], sample: SourceSample, held_out_bytes: int) -> None:
    """Put the first documents into the sample, up to its budget, and hold out the others.

    The last document is truncated at the budget; its rest is in neither part.
    """
    total = sum(size for size, _ in documents)
    kept_back = min(held_out_bytes, int(total * HELD_OUT_SHARE))
    limit = min(sample.budget, total - kept_back)
    for _, text in documents:
        if sample.bytes >= limit:
            sample.held_out.append(text)
            continue
        sample.documents += 1
        sample.digests.add(digest(text))
        for chunk in split_hard(text, CHUNK_CHARACTERS):
            if sample.bytes >= sample.budget:
                break
            sample.chunks.append(chunk)
            sample.bytes += len(chunk.encode())


def _hash(*parts: object) -> int:
    """64-bit hash of all parts, the same on every machine (unlike `hash`)."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
