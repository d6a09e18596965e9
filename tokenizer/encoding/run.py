"""Encodes a corpus into token shards.

1. Plan tasks of about 256 MiB of text, whatever the number of processes.               -> corpus/task_plan.py
2. With `deduplicate`, hash every document and find those to leave out.                 -> deduplicate.py
3. Run the tasks in processes; each ends with its own shards and receipt.               -> worker_pool.py, encode_task.py
4. When all receipts exist, number the shards and write the manifest last.              -> merge.py

The output bytes depend on corpus, tokenizer and options alone, never on the number of processes or on kills. A run resumes
an earlier one from its state in OUTPUT/tasks.                                          -> work_folder.py
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pretrain.errors import DataError, PretrainError
from pretrain.shards.manifest import MANIFEST_NAME, Manifest
from pretrain.shards.manifest_file import read_manifest
from pretrain.shards.writer import ENCODING_NAME, PROBLEMS_NAME, clear_output
from tokenizer.corpus.empty_inputs import refuse_empty_input
from tokenizer.corpus.readers import CorpusTask, ReadOptions
from tokenizer.corpus.rejection_log import DUPLICATE, HELD_OUT, TRAINED_ON, RejectionLog
from tokenizer.corpus.task_plan import TaskPlan, plan_tasks, refuse_output_inside
from tokenizer.encoding.deduplicate import REPEATED_NAME, HashWorker, find_repeated, hashed_documents
from tokenizer.encoding.encode_options import EncodeOptions, Encoding, make_encoding
from tokenizer.encoding.encode_task import EncodeWorker
from tokenizer.encoding.merge import merge
from tokenizer.encoding.receipts import Receipt
from tokenizer.encoding.shared_counts import EncodeProgress
from tokenizer.encoding.shuffle import WINDOW_DOCUMENTS, WINDOW_IDS
from tokenizer.encoding.work_folder import Job, WorkFolder
from tokenizer.encoding.worker_pool import run_in_pool

FORMAT = "pretrain-tasks/1"
PLAN_NAME = "plan.jsonl"
# A corpus with less text than this many tasks of TASK_BYTES gets smaller tasks, so that several processes can share it.
SMALL_CORPUS_TASKS = 16
SMALLEST_TASK_BYTES = 8 << 20
SHOWN_TASKS = 20

ProgressCallback = Callable[[EncodeProgress], None]


def encode_corpus(
    tokenizer: Path,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Manifest:
    """Encode `inputs` (files, folders, addresses) as token shards in the folder `output`; returns the manifest.

    `workers` is the number of processes (default: one per usable core; 1 encodes in this process); `options` are the
    fields of EncodeOptions. Resumes an earlier call; `overwrite` replaces a complete corpus, or one with other options.
    `progress` is called a few times per second. Raises DataError for an unusable tokenizer, corpus or option, a complete
    output, and more bad documents or damaged files than allowed; PretrainError if a process dies or the disk is full.
    """
    workers = worker_count(workers)
    run = EncodeRun(make_encoding(tokenizer, EncodeOptions(**options)), inputs, output, overwrite=overwrite)
    run.run_tasks(run.plan.tasks, workers=workers, progress=progress)
    run.finish_hash_pass()
    if run.encoding.deduplicate:  # the first run_tasks hashed, this one encodes
        run.run_tasks(run.plan.tasks, workers=workers, progress=progress)
    return run.merge()


def worker_count(workers: int | None) -> int:
    """Number of processes: as given, or the cores that this process may use. Raises DataError if less than one."""
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers} is less than 1", hint="--workers 1 encodes in this process")
    return workers or len(os.sched_getaffinity(0))


class EncodeRun:
    """Encoding of one corpus, by this process alone or by several at once.

    The constructor plans the corpus and prepares the output. Finished work of an earlier run is kept; if that run had
    other options or files, it raises DataError, or removes the work if `overwrite` is set.
    """

    def __init__(
        self, encoding: Encoding, inputs: Sequence[str | Path], output: Path, *, overwrite: bool = False
    ) -> None:
        self.output = output
        if output.exists() and not output.is_dir():
            raise DataError(
                f"{output}: the output must be a folder, and this is a file", hint="choose another --output"
            )
        refuse_output_inside(list(map(str, inputs)), output)
        self.plan, reading = _make_plan(list(map(str, inputs)), encoding.reading)
        self.plan.problems.check_limits(encoding.max_bad_documents, encoding.max_bad_files)
        self.encoding = replace(encoding, reading=reading)
        self.work = WorkFolder(output, _make_job(self.encoding, self.plan))
        self._complete = self._prepare(overwrite=overwrite)

    def _prepare(self, *, overwrite: bool) -> Manifest | None:
        """Prepare the output; returns the manifest if an earlier run with this job has completed the corpus."""
        found = self.work.found_job()
        if (self.output / MANIFEST_NAME).exists():
            if not overwrite:
                return self._completed_before(found)
        elif found is None:
            self._refuse_foreign_files()
        try:
            with self._disk_errors():
                if (self.output / MANIFEST_NAME).exists() or found is None or (overwrite and found != self.work.job):
                    self.output.mkdir(parents=True, exist_ok=True)
                    clear_output(self.output, problems=found is not None)
                    if found is not None:
                        self.work.remove()
                self.work.open()
        except PretrainError:
            if self._completed_meanwhile():
                return self._completed_before(None)
            raise
        return None

    def _completed_before(self, found: Job | None) -> Manifest:
        """The manifest of a complete corpus, if this job made it; `found` is what the work folder, if any, says."""
        if found == self.work.job:
            self.work.remove()  # the last steps of a merge, which a kill may have skipped
            return read_manifest(self.output)
        self.work.remove_if_empty()
        finished = self.work.finished_job()
        if finished == self.work.job:
            return read_manifest(self.output)
        differences = "" if finished is None else f", encoded with other options:{self.work.differences(finished)}"
        raise DataError(
            f"{self.output}: holds an encoded corpus already{differences}",
            hint="choose another --output, or add --overwrite to replace it. To add documents, encode them alone into "
            "another folder, and name both folders under data.train",
        )

    def _refuse_foreign_files(self) -> None:
        finished = self.work.finished_job()  # of a corpus whose manifest was deleted
        ours = {ENCODING_NAME} if finished is not None and finished.get("format") == FORMAT else set()
        for name in {PROBLEMS_NAME, ENCODING_NAME} - ours:
            if (self.output / name).exists():
                raise DataError(
                    f"{self.output / name}: is not from an encoding run, and would be overwritten",
                    hint="choose another --output",
                )

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run with this job has completed the corpus: nothing is left to do."""
        return self._complete is not None

    @property
    def in_hash_pass(self) -> bool:
        """Whether tasks must be hashed for deduplication before they are encoded."""
        if self._complete is not None or self.work.merging:
            return False
        return self.encoding.deduplicate and not (self.work.path / REPEATED_NAME).is_dir()

    def unfinished(self, tasks: Sequence[CorpusTask]) -> list[CorpusTask]:
        """Tasks still to be hashed (in the hash pass) or encoded."""
        if self._complete is not None or self.work.merging:
            return []
        if self.in_hash_pass:
            return [task for task in tasks if hashed_documents(self.work, task.number) is None]
        return [task for task in tasks if self.work.receipt(task.number) is None]

    def run_tasks(self, tasks: Sequence[CorpusTask], *, workers: int, progress: ProgressCallback | None = None) -> int:
        """Hash or encode the unfinished ones of `tasks`; returns their number."""
        with self._disk_errors():
            unfinished = self.unfinished(tasks)
            hashing = self.in_hash_pass
            problems = RejectionLog()
            for receipt in [] if hashing else self._receipts(tasks):
                problems.merge(receipt.problems)
            allowed = self.encoding.max_bad_documents - problems.bad
            worker = (
                HashWorker(self.encoding.reading, self.work, allowed, self.encoding.max_bad_files)
                if hashing
                else EncodeWorker(self.encoding, self.work, allowed)
            )
            outcome = run_in_pool(
                unfinished,
                worker,
                workers=workers,
                max_bad=allowed,
                max_bad_files=self.encoding.max_bad_files,
                progress=progress,
            )
        found = {number: result.problems for number, result in outcome.results.items()} | outcome.stopped
        for number in sorted(found):
            problems.merge(found[number])
        problems.check_limits(self.encoding.max_bad_documents, self.encoding.max_bad_files)
        return len(unfinished)

    def finish_hash_pass(self) -> None:
        """If all tasks are hashed, find the duplicates to leave out; encoding comes next."""
        if self.in_hash_pass and not self.unfinished(self.plan.tasks):
            with self._disk_errors():
                find_repeated(self.work, len(self.plan.tasks))

    def merge(self) -> Manifest:
        """Merge all tasks into the corpus. Raises DataError for unfinished tasks, and an input without documents."""
        if self._complete is not None:
            return self._complete
        unfinished = self.unfinished(self.plan.tasks)
        if unfinished:
            if self._completed_meanwhile():
                return read_manifest(self.output)
            what = "are not hashed for deduplication" if self.in_hash_pass else "are not encoded"
            shown = ", ".join(str(task.number) for task in unfinished[:SHOWN_TASKS])
            raise DataError(
                f"{self.output}: {len(unfinished)} of {len(self.plan.tasks)} tasks {what}: {shown}"
                f"{', …' if len(unfinished) > SHOWN_TASKS else ''}",
                hint="run these with --task-id, or leave --merge out to run all of them here",
            )
        try:
            with self._disk_errors():
                receipts = self._receipts(self.plan.tasks)
                if len(receipts) == len(self.plan.tasks):
                    self._refuse_empty_inputs(receipts)
                    return merge(self.work, receipts, self.encoding)
        except PretrainError:
            if self._completed_meanwhile():
                return read_manifest(self.output)
            raise
        if self._completed_meanwhile():
            return read_manifest(self.output)
        raise DataError(
            f"{self.work.path}: {len(self.plan.tasks) - len(receipts)} receipts are missing or corrupt",
            hint=self.work.restart_hint,
        )

    def _refuse_empty_inputs(self, receipts: Sequence[Receipt]) -> None:
        documents = [0] * len(self.plan.sources)
        problems = [RejectionLog() for _ in self.plan.sources]
        for task, receipt in zip(self.plan.tasks, receipts, strict=True):
            documents[task.source] += receipt.documents + sum(
                receipt.problems.counts.get(reason, 0) for reason in (DUPLICATE, HELD_OUT, TRAINED_ON)
            )
            problems[task.source].merge(receipt.problems)
        for source, found, log in zip(self.plan.sources, documents, problems, strict=True):
            if not found:
                refuse_empty_input(source.input, log, single_file=source.single)

    def _completed_meanwhile(self) -> bool:
        """Whether a concurrent merge has published the corpus; it then removes the receipts."""
        return (self.output / MANIFEST_NAME).exists()

    def write_plan(self) -> Path:
        """Write plan.jsonl, one task per line, for inspection; returns its path."""
        lines = "".join(json.dumps(task.to_json()) + "\n" for task in self.plan.tasks)
        self.work.write(PLAN_NAME, lines.encode())
        return self.work.path / PLAN_NAME

    def _receipts(self, tasks: Sequence[CorpusTask]) -> list[Receipt]:
        found = (self.work.receipt(task.number) for task in tasks)
        return [receipt for receipt in found if receipt is not None]

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if (self.output / MANIFEST_NAME).exists() and not self.work.path.exists():
                raise DataError(f"{self.output}: another process completed it at the same time") from None
            raise PretrainError(f"{self.output}: cannot be written: {error.strerror}") from error


def select_tasks(tasks: Sequence[CorpusTask], task_id: int, num_tasks: int | None) -> Sequence[CorpusTask]:
    """Tasks of one element of a job array: every `num_tasks`-th from `task_id` on, or that one alone.

    Raises DataError for a number outside the array or the plan.
    """
    if num_tasks is None and task_id >= len(tasks):
        raise DataError(
            f"task_id={task_id}: the plan has tasks 0 to {len(tasks) - 1}", hint="--plan shows the number of tasks"
        )
    if num_tasks is not None and task_id >= num_tasks:
        raise DataError(
            f"task_id={task_id} is not below num_tasks={num_tasks}", hint="number the array from 0: --array=0-N"
        )
    return tasks[task_id : task_id + 1] if num_tasks is None else tasks[task_id::num_tasks]


def _make_plan(inputs: Sequence[str], reading: ReadOptions) -> tuple[TaskPlan, ReadOptions]:
    """The plan, and the options it was made with: a small corpus gets smaller tasks."""
    plan = plan_tasks(inputs, reading, join_files=True)
    share = -(-plan.text_bytes // SMALL_CORPUS_TASKS)
    if share >= reading.task_bytes:
        return plan, reading
    reading = replace(reading, task_bytes=min(reading.task_bytes, max(share, SMALLEST_TASK_BYTES)))
    return plan_tasks(inputs, reading, join_files=True), reading


def _make_job(encoding: Encoding, plan: TaskPlan) -> dict[str, object]:
    """All that the output bytes depend on, under the names of the options."""
    job = asdict(encoding)
    # `layout` follows from seq_len; the path of the tokenizer and the limits do not change the bytes.
    for name in ("tokenizer", "layout", "max_bad_documents", "max_bad_files", "reading"):
        del job[name]
    if not encoding.part:  # as the jobs of earlier releases
        del job["holdout"], job["part"]
    return {
        "format": FORMAT,
        **encoding.reading.to_json(),
        **job,
        "window": [WINDOW_IDS, WINDOW_DOCUMENTS],
        "tasks": len(plan.tasks),
        "plan": plan.fingerprint,
    }
