"""Encoding a corpus into token shards: the plan, its tasks, and the corpus that they make.

1. The files are planned as tasks of some 256 MiB of text, whatever the number of processes.            -> corpus.py
2. With `deduplicate`, every document is hashed, and it is decided which ones are left out.         -> duplicates.py
3. Processes run the tasks; each ends with shards and a receipt of its own.                   -> pool.py, tasks.py
4. When all receipts are there, shards get their numbers, and the manifest is written last.              -> merge.py

So the bytes depend on corpus, tokenizer and options, never on who ran which task, how often it was killed, or in how many
processes. A run goes on where an earlier one ended; what it needs to know lies in OUTPUT/tasks.   -> work_folder.py
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
from pretrain.shards.writer import PROBLEMS_NAME, clear_output
from tokenizer.corpus.readers import ReadOptions, Task
from tokenizer.corpus.rejection_log import Problems
from tokenizer.corpus.task_plan import Plan, plan_tasks, refuse_output_inside
from tokenizer.encoding.deduplicate import REPEATED_NAME, HashWorker, find_repeated, hashed_documents
from tokenizer.encoding.encode_options import Encoding, describe
from tokenizer.encoding.encode_task import EncodeWorker
from tokenizer.encoding.merge import merge
from tokenizer.encoding.receipts import Receipt
from tokenizer.encoding.shared_counts import EncodeProgress
from tokenizer.encoding.shuffle import WINDOW_DOCUMENTS, WINDOW_IDS
from tokenizer.encoding.work_folder import WorkFolder
from tokenizer.encoding.worker_pool import run_all

FORMAT = "pretrain-tasks/1"
PLAN_NAME = "plan.jsonl"
# A corpus of less text than TASK_BYTES times this gets smaller tasks, so that some processes can share it.
SMALL_CORPUS_TASKS = 16
SMALLEST_TASK_BYTES = 8 << 20
SHOWN_TASKS = 20

Show = Callable[[EncodeProgress], None]


def encode_corpus(
    tokenizer: Path,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Show | None = None,
    **options: Any,
) -> Manifest:
    """Write `inputs` (files, folders, addresses) as token shards to the folder `output`; returns the manifest.

    `workers` are processes (default: one a usable core; 1 encodes in this one), `options` those of `describe`. Goes on with
    what an earlier call began; `overwrite` replaces a complete corpus, or one of other options. `progress` is called a few
    times a second. Raises DataError for an unusable tokenizer, corpus or option, an output that is complete, and more than
    `max_bad_documents` bad documents; PretrainError where a process dies or the disk is full.
    """
    workers = check_workers(workers)
    run = Run(describe(tokenizer, **options), inputs, output, overwrite=overwrite)
    run.work_on(run.plan.tasks, workers=workers, progress=progress)
    run.decide()
    if run.encoding.deduplicate:  # until now, duplicates were looked for
        run.work_on(run.plan.tasks, workers=workers, progress=progress)
    return run.merge()


def check_workers(workers: int | None) -> int:
    """How many processes: as given, or the cores that this one may use. Raises DataError for less than one."""
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers}: at least 1 process is needed")
    return workers or len(os.sched_getaffinity(0))


class Run:
    """A corpus that is being encoded, by this process alone or by many at the same time.

    Making one plans the corpus, and prepares the output: what an earlier run finished is kept, and of other options or files
    refused, or removed with `overwrite`. Raises DataError.
    """

    def __init__(
        self, encoding: Encoding, inputs: Sequence[str | Path], output: Path, *, overwrite: bool = False
    ) -> None:
        self.output = output
        if output.exists() and not output.is_dir():
            raise DataError(f"{output}: the output must be a folder, and this is a file")
        refuse_output_inside(list(map(str, inputs)), output)
        self.plan, reading = _plan(list(map(str, inputs)), encoding.reading)
        self.encoding = replace(encoding, reading=reading)
        self.work = WorkFolder(output, _job(self.encoding, self.plan))
        self._complete = self._prepare(overwrite=overwrite)

    def _prepare(self, *, overwrite: bool) -> Manifest | None:
        """Make the output ready; the manifest if an earlier run was killed when all was done but tidying up."""
        found = self.work.found_job()
        if (self.output / MANIFEST_NAME).exists():
            if found == self.work.job and not overwrite:
                self.work.remove()
                return read_manifest(self.output)
            if not overwrite:
                self.work.remove_if_empty()  # the last thing that a run does
                raise DataError(
                    f"{self.output}: holds an encoded corpus already",
                    hint="choose another --output, or add --overwrite",
                )
        elif found is None and (self.output / PROBLEMS_NAME).exists():
            raise DataError(
                f"{self.output / PROBLEMS_NAME}: is none of ours, and would be written over",
                hint="choose another --output",
            )
        with self._disk_errors():
            if (self.output / MANIFEST_NAME).exists() or found is None or (overwrite and found != self.work.job):
                self.output.mkdir(parents=True, exist_ok=True)
                clear_output(self.output, problems=found is not None)
                if found is not None:
                    self.work.remove()
            self.work.open()
        return None

    @property
    def looking_for_duplicates(self) -> bool:
        """Whether tasks are hashed first, and not encoded yet."""
        if self._complete is not None or self.work.merging:
            return False
        return self.encoding.deduplicate and not (self.work.path / REPEATED_NAME).is_dir()

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of `tasks` for which there is something to do now: which are not hashed, or not encoded."""
        if self._complete is not None or self.work.merging:
            return []
        if self.looking_for_duplicates:
            return [task for task in tasks if hashed_documents(self.work, task.number) is None]
        return [task for task in tasks if self.work.receipt(task.number) is None]

    def work_on(self, tasks: Sequence[Task], *, workers: int, progress: Show | None = None) -> int:
        """Hash or encode those of `tasks` for which it was not done before; how many they were."""
        with self._disk_errors():
            missing = self.missing(tasks)
            hashing = self.looking_for_duplicates
            problems = Problems()
            for receipt in [] if hashing else self._receipts(tasks):
                problems.merge(receipt.problems)
            allowed = self.encoding.max_bad_documents - problems.bad
            worker = (
                HashWorker(self.encoding.reading, self.work, allowed)
                if hashing
                else EncodeWorker(self.encoding, self.work, allowed)
            )
            outcome = run_all(missing, worker, workers=workers, max_bad=allowed, show=progress)
        found = {number: result.problems for number, result in outcome.results.items()} | outcome.stopped
        for number in sorted(found):
            problems.merge(found[number])
        problems.check_limit(self.encoding.max_bad_documents)
        return len(missing)

    def decide(self) -> None:
        """Where duplicates have been looked for in all tasks, settle which documents are left out."""
        if self.looking_for_duplicates and not self.missing(self.plan.tasks):
            with self._disk_errors():
                find_repeated(self.work, len(self.plan.tasks))

    def merge(self) -> Manifest:
        """The corpus, of which all tasks are finished. Raises DataError with the tasks that are not."""
        if self._complete is not None:
            return self._complete
        missing = self.missing(self.plan.tasks)
        if missing:
            what = "are not searched for duplicates" if self.looking_for_duplicates else "are not encoded"
            shown = ", ".join(str(task.number) for task in missing[:SHOWN_TASKS])
            raise DataError(
                f"{self.output}: {len(missing)} of {len(self.plan.tasks)} tasks {what}: {shown}"
                f"{', …' if len(missing) > SHOWN_TASKS else ''}",
                hint="run these with --task-id, or leave --merge out to do all that is left here",
            )
        with self._disk_errors():
            receipts = self._receipts(self.plan.tasks)
            if len(receipts) < len(self.plan.tasks):  # all were there when merging began
                raise DataError(
                    f"{self.work.path}: {len(self.plan.tasks) - len(receipts)} receipts are gone or damaged",
                    hint=self.work.how_to_begin_anew,
                )
            return merge(self.work, receipts, self.encoding)

    def write_plan(self) -> Path:
        """Write down the tasks, a line of JSON each, for people."""
        lines = "".join(json.dumps(task.to_json()) + "\n" for task in self.plan.tasks)
        self.work.write(PLAN_NAME, lines.encode())
        return self.work.path / PLAN_NAME

    def _receipts(self, tasks: Sequence[Task]) -> list[Receipt]:
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


def select(tasks: Sequence[Task], task_id: int, num_tasks: int | None) -> Sequence[Task]:
    """The share of one element of a job array: every `num_tasks`-th task from number `task_id` on, or that task alone.

    Raises DataError for a number outside the array, or the plan.
    """
    if num_tasks is None and task_id >= len(tasks):
        raise DataError(f"task_id={task_id}: the plan has tasks 0 to {len(tasks) - 1}", hint="--plan says how many")
    if num_tasks is not None and task_id >= num_tasks:
        raise DataError(
            f"task_id={task_id} is not below num_tasks={num_tasks}", hint="number the array from 0: --array=0-N"
        )
    return tasks[task_id : task_id + 1] if num_tasks is None else tasks[task_id::num_tasks]


def _plan(inputs: Sequence[str], reading: ReadOptions) -> tuple[Plan, ReadOptions]:
    """The plan, and the options with which it was made: tasks are smaller where there is little text."""
    plan = plan_tasks(inputs, reading)
    share = -(-plan.text_bytes // SMALL_CORPUS_TASKS)
    if share >= reading.task_bytes:
        return plan, reading
    reading = replace(reading, task_bytes=min(reading.task_bytes, max(share, SMALLEST_TASK_BYTES)))
    return plan_tasks(inputs, reading), reading


def _job(encoding: Encoding, plan: Plan) -> dict[str, object]:
    """What decides the bytes, with names that a user knows."""
    job = asdict(encoding)
    for name in ("tokenizer", "max_bad_documents"):
        del job[name]
    return {
        "format": FORMAT,
        **job.pop("reading"),
        **job,
        "window": [WINDOW_IDS, WINDOW_DOCUMENTS],
        "tasks": len(plan.tasks),
        "plan": plan.fingerprint,
    }
