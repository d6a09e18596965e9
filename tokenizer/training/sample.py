"""Which documents of a corpus a tokenizer is trained on, and which are held out to report on.

1. A source (`NAME=PATH…`) has a budget of bytes: given, or its part of the rest in proportion to the sources' sizes.
2. Small tasks of the source are read in an order that a hash shuffles, a stretch of each, until READ_FACTOR times the
   budget was read: some 64 places all over a large source, the whole of a small one.
3. Each document gets a hash of seed, source, task and its number there. Those with the smallest hashes are the sample, up
   to the budget; the next ones are held out. Memory holds these two and no more.
4. A held-out document whose text is also in the sample is left out, and counted.

So the sample depends on the corpus, the budgets and the seed, and not on where the corpus lies. Only the beginning of a
compressed file is read where the file holds more than a stretch: it cannot be entered in its middle.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256

from tokenizer.corpus.readers import CorpusTask, Document, ReadOptions, read_part
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.corpus.task_plan import plan_tasks
from tokenizer.models.splitting import cut_hard
from tokenizer.training.budget import Budget, SampleSource

CHUNK_CHARACTERS = 4096
# At most this share of a source that is smaller than its budget is held out.
HELD_OUT_SHARE = 0.05
READ_FACTOR = 16
PLACES = 64
SMALLEST_TASK_BYTES = 4 << 20
DIGEST_BYTES = 8

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, and about how many there are (0: unknown)


@dataclass
class SourceSample:
    """What was drawn from a source: chunks to train on, whole documents held out, and how much was read for it.

    `digests` are of the texts of all sampled documents; `whole` says whether everything was read.
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


def draw_samples(
    sources: Sequence[SampleSource],
    options: ReadOptions,
    *,
    budget: Budget,
    held_out_bytes: int,
    seed: int,
    problems: RejectionLog,
    max_bad_documents: int,
    progress: Progress | None = None,
) -> list[SourceSample]:
    """A sample of each source, with up to `held_out_bytes` held out of each.

    Raises DataError for what cannot be planned or read, and above `max_bad_documents`.
    """
    # Smaller tasks than for encoding: a stretch of each of PLACES tasks then suffices, and lies all over a source.
    stretch = READ_FACTOR * (budget.total + held_out_bytes) // PLACES
    small = min(max(stretch, SMALLEST_TASK_BYTES), options.task_bytes)
    options = replace(options, task_bytes=small)
    owner = [source.name for source in sources for _ in source.inputs]
    plan = plan_tasks([path for source in sources for path in source.inputs], options)
    tasks: dict[str, list[CorpusTask]] = {source.name: [] for source in sources}
    for task in plan.tasks:
        tasks[owner[task.source]].append(task)
    budgets = budget.divide({name: sum(task.text_bytes for task in own) for name, own in tasks.items()})
    return [
        sample_source(
            name,
            own,
            options,
            budget=budgets[name],
            held_out_bytes=held_out_bytes,
            seed=seed,
            problems=problems,
            max_bad_documents=max_bad_documents,
            progress=progress,
        )
        for name, own in tasks.items()
    ]


def sample_source(
    name: str,
    tasks: Sequence[CorpusTask],
    options: ReadOptions,
    *,
    budget: int,
    held_out_bytes: int,
    seed: int,
    problems: RejectionLog,
    max_bad_documents: int,
    progress: Progress | None = None,
) -> SourceSample:
    """Draw `budget` bytes of text, and `held_out_bytes` more. Same tasks and seed, same documents.

    Raises DataError above `max_bad_documents`.
    """
    sample = SourceSample(name, budget, tasks=len(tasks))
    drawn = _Smallest(budget + held_out_bytes)
    to_read = READ_FACTOR * (budget + held_out_bytes)
    expected = min(to_read, sum(task.text_bytes for task in tasks))
    stretch = to_read // min(max(len(tasks), 1), PLACES)
    # (task, how many of its entries were read before)
    waiting = [(number, 0) for number in sorted(range(len(tasks)), key=lambda n: _hash(seed, name, n))]
    begun: set[int] = set()
    while waiting and sample.bytes_read < to_read:
        number, skipped = waiting.pop(0)
        begun.add(number)
        entries, read = 0, 0
        for file, found in _entries(tasks[number], options):
            entries += 1
            if entries <= skipped:
                continue
            if isinstance(found, Rejection):
                problems.add(file, found)
                problems.check_limit(max_bad_documents)
                continue
            drawn.add(_hash(seed, name, number, entries), found)
            sample.documents_read += 1
            sample.bytes_read += found.bytes
            read += found.bytes
            if progress is not None:
                progress(f"reading {name}", sample.bytes_read, expected)
            if read >= stretch:
                # Another turn comes if all tasks had theirs and did not suffice.
                waiting.append((number, entries))
                break
    sample.tasks_read, sample.whole = len(begun), not waiting
    _divide(drawn.in_order(), sample, held_out_bytes)
    return sample


def without_duplicates(samples: Sequence[SourceSample]) -> int:
    """Take from each `held_out` the documents whose text is in one of the samples; returns how many."""
    known = set().union(*(sample.digests for sample in samples))
    return sum(drop_known(sample.held_out, known) for sample in samples)


def drop_known(texts: list[str], known: set[bytes]) -> int:
    """Take the texts with a digest in `known` out of `texts`; returns how many."""
    before = len(texts)
    texts[:] = [text for text in texts if digest(text) not in known]
    return before - len(texts)


def digest(text: str) -> bytes:
    """The first DIGEST_BYTES bytes of a text's sha256."""
    return sha256(text.encode()).digest()[:DIGEST_BYTES]


class _Smallest:
    """The documents with the smallest hashes that together reach `limit` bytes, whatever the order they come in."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._heap: list[tuple[int, int, str]] = []

    def add(self, rank: int, document: Document) -> None:
        heapq.heappush(self._heap, (-rank, document.bytes, document.text))
        self._bytes += document.bytes
        while self._heap and self._bytes - self._heap[0][1] >= self._limit:
            self._bytes -= heapq.heappop(self._heap)[1]

    def in_order(self) -> list[tuple[int, str]]:
        """(bytes, text) by rising hash."""
        return [(size, text) for _, size, text in sorted(self._heap, key=lambda entry: -entry[0])]


def _entries(task: CorpusTask, options: ReadOptions) -> Iterator[tuple[str, Document | Rejection]]:
    for part in task.parts:
        for found in read_part(part, options):
            yield part.url, found


def _divide(documents: Sequence[tuple[int, str]], sample: SourceSample, held_out_bytes: int) -> None:
    """The first documents to the sample, up to its budget, the others held out.

    Where there is more text than budget, the last document of the sample is cut, and its rest is in neither.
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
        for chunk in cut_hard(text, CHUNK_CHARACTERS):
            if sample.bytes >= sample.budget:
                break
            sample.chunks.append(chunk)
            sample.bytes += len(chunk.encode())


def _hash(*parts: object) -> int:
    """64 bits that depend on all parts, the same on every machine."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
