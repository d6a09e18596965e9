"""Status of a run, from its folder and squeue. Needs neither torch nor SLURM accounting, and works without SLURM.

`why` says in one sentence why the run is not training, or that it is.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.restarts import newest_checkpoint
from launch.slurm import commands as slurm
from launch.slurm.job_record import JobEvent, JobRecord, LaunchFolder
from launch.slurm.pending_reasons import explain_reason
from pretrain.config.load import load_saved
from pretrain.errors import PretrainError, UserError
from pretrain.failure import read_failure
from pretrain.run_folder import RunFolder, parse_lines

RECENT_STEPS = 20  # averaged for the speed
TAIL_BYTES = 65_536
LOG_LINES = 5
SILENT_S = 300.0  # without metrics for this long, and for ten steps, a run counts as silent


@dataclass(frozen=True)
class RunStatus:
    """Snapshot of a run's status; None: unknown. Ages are in seconds."""

    run: str
    status: str | None  # RUN/status
    why: str
    attempt: int
    step: int
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    model_tflops_per_second: float | None
    mfu: float | None
    seconds_left: float | None
    checkpoint_step: int | None
    checkpoint_age_s: float | None
    metrics_age_s: float | None
    job: dict[str, Any] | None  # id, state, reason, nodes, start, left, restart
    log: list[str]
    failure: dict[str, Any] | None = None  # of the newest start: failure.py

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def read_status(run: Path, now: float | None = None) -> RunStatus:
    """Read the status of a run. Raises UserError if the folder is not a run."""
    now = time.time() if now is None else now
    folder, launch = RunFolder(run), LaunchFolder(run / "launch")
    if not is_run(run):
        raise UserError(f"{run} is not a run folder", hint="pass run.dir of the configuration")
    record, history = launch.read_record(), launch.read_history()
    job, unknown = _find_job(record)
    lines = read_tail(folder.metrics)
    last = lines[-1] if lines else {}
    rate = _mean(lines, "tokens_per_second")
    flops = _mean(lines, "model_flops_per_second")
    total = _total_steps(folder, record)
    step = int(last.get("step", 0))
    seconds = _mean(lines, "seconds")
    checkpoint, saved = newest_checkpoint(folder.checkpoints) or (None, None)
    silent = None if not lines else now - folder.metrics.stat().st_mtime
    status = folder.status()
    failure = None if status in ("done", "unfinished") else read_failure(folder)
    why = _why(status, job, unknown, record, history, silent, seconds)
    training = why.startswith("training")
    return RunStatus(
        run=str(run),
        status=status,
        why=why if failure is None or record is not None else f"{failure.status}: {failure}",
        attempt=folder.attempt(),
        step=step,
        total_steps=total,
        loss=last.get("loss"),
        tokens_per_second=rate,
        model_tflops_per_second=None if flops is None else flops / 1e12,
        mfu=_mfu(flops, record),
        seconds_left=None if seconds is None or total is None or not training else max(0, total - step) * seconds,
        checkpoint_step=checkpoint,
        checkpoint_age_s=None if saved is None else now - saved,
        metrics_age_s=silent,
        job=_job_values(job, record, history),
        log=_log_tail(folder, record),
        failure=None if failure is None else asdict(failure),
    )


def is_run(path: Path) -> bool:
    """Whether a run was started or submitted in this folder."""
    return RunFolder(path).config.is_file() or LaunchFolder(path / "launch").record.is_file()


def find_runs(folder: Path) -> list[Path]:
    """All runs in a folder, by name. Raises UserError if there is none."""
    found = sorted(path for path in folder.glob("*") if is_run(path))
    if not found:
        raise UserError(f"{folder}/ has no run", hint="pretrain status RUN")
    return found


def read_tail(path: Path, count: int = RECENT_STEPS) -> list[dict[str, Any]]:
    """Last intact JSON lines of a file that may be long and is being appended to."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read()
    except FileNotFoundError:
        return []
    whole = data.partition(b"\n")[2] if size > TAIL_BYTES else data
    return parse_lines(whole)[0][-count:]


def _find_job(record: JobRecord | None) -> tuple[slurm.QueuedJob | None, str | None]:
    """(job in the queue, error of the query)."""
    if record is None:
        return None, None
    try:
        return slurm.find_job(record.job_id), None
    except PretrainError as error:
        return None, error.message


def _why(
    status: str | None,
    job: slurm.QueuedJob | None,
    unknown: str | None,
    record: JobRecord | None,
    history: Sequence[JobEvent],
    silent_s: float | None,
    step_s: float | None,
) -> str:
    ours = [event for event in history if record is not None and event.job_id == record.job_id]
    last = ours[-1] if ours else None
    if job is not None:
        if job.state == "PENDING":
            again = f", after: {last.text}" if last is not None and last.what == "requeue" else ""
            return f"job {job.job_id} waits in the queue: {explain_reason(job.reason)}{again}"
        if job.state == "COMPLETING":
            end = f": {last.text}" if last is not None and last.what == "end" else ", cancelled or at its end"
            return f"job {job.job_id} is being cleaned up by SLURM{end}"
        if job.state != "RUNNING":
            return f"job {job.job_id} is {job.state}"
        if status != "running":
            return f"job {job.job_id} has started, training not yet"
        if silent_s is not None and silent_s > max(SILENT_S, 10 * (step_s or 0)):
            return f"job {job.job_id} is RUNNING, but finished no step for {silent_s:.0f} s"
        return f"training, as job {job.job_id}"
    if status == "done":
        return "done"
    if unknown is not None:
        return f"state of job {record.job_id if record else '?'} unknown: {unknown}"
    if last is not None and last.what == "end":
        return f"job {last.job_id} ended: {last.text}"
    if record is not None:
        found = slurm.job_end(record.job_id)
        return f"job {record.job_id} is gone" + (f": {found}" if found else ", for an unknown reason")
    if status == "running":
        late = silent_s is not None and silent_s > max(SILENT_S, 10 * (step_s or 0))
        return "it stopped without recording why: killed, or its machine is down" if late else "training"
    return {None: "not started", "unfinished": "stopped and saved; the same command resumes it"}.get(
        status, str(status)
    )


def _job_values(
    job: slurm.QueuedJob | None, record: JobRecord | None, history: Sequence[JobEvent]
) -> dict[str, Any] | None:
    if record is None:
        return None
    restarts = [event.restart for event in history if event.job_id == record.job_id]
    known = {"id": record.job_id, "cluster": record.cluster, "restart": max(restarts, default=0)}
    if job is None:
        return {**known, "state": None}
    return {**known, **{name: value for name, value in job._asdict().items() if name != "job_id"}}


def _total_steps(folder: RunFolder, record: JobRecord | None) -> int | None:
    """From the run's configuration; before its first start, from the submitted one."""
    submitted = None if record is None else Path(record.script).with_suffix(".yaml")
    for path in filter(None, (folder.config, submitted)):
        with suppress(PretrainError):  # missing or of another version: show the status without the total
            return load_saved(path).schedule.total_steps
    return None


def _mfu(flops: float | None, record: JobRecord | None) -> float | None:
    """Fraction of all GPUs' peak; None if the cluster file does not give it."""
    if flops is None or record is None or not record.peak_tflops:
        return None
    return flops / (record.peak_tflops * 1e12 * record.world_size)


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean weighted by time, not by steps."""
    steps = [line for line in lines if key in line and line.get("seconds")]
    if not steps:
        return None
    if key == "seconds":
        return float(sum(line["seconds"] for line in steps) / len(steps))
    return float(sum(line[key] * line["seconds"] for line in steps) / sum(line["seconds"] for line in steps))


def _log_tail(folder: RunFolder, record: JobRecord | None) -> list[str]:
    """Last lines of the trainer's or the job's log, whichever is newer: an early failure is only in the job's."""
    logs = [folder.logs / "train.log", *([] if record is None else [Path(record.log)])]
    found = [path for path in logs if path.is_file()]
    if not found:
        return []
    with max(found, key=lambda path: path.stat().st_mtime).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
