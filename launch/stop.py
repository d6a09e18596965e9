"""`pretrain stop`: a run saves and ends, and no job of it comes back."""

from pathlib import Path

from launch.slurm import commands as slurm
from launch.slurm.job_record import LaunchFolder
from launch.status import is_run
from pretrain.errors import UserError
from pretrain.run_folder import RunFolder


def stop_run(run: Path, *, now: bool = False) -> str:
    """Ask a run to stop, or with `now` cancel its job. Returns what was done, for a person.

    A job that still waits is cancelled: it has nothing to save, and a stop file from before its start would ask nobody.
    """
    folder, launch = RunFolder(run), LaunchFolder(run / "launch")
    if not is_run(run):
        raise UserError(f"{run} is not the folder of a run", hint="run.dir of the configuration")
    record = launch.read_record()
    try:
        job = None if record is None else slurm.find_job(record.job_id)
    except slurm.SlurmError as error:
        if now:
            raise
        launch.stopped.touch()
        folder.stop_file.touch()
        return f"{error.message}; whatever runs saves and ends, and what waits will not begin"
    if record is None or job is None:
        if now:
            raise UserError(f"run {run} has no job that could be cancelled", hint="without --now it saves and ends")
        if folder.status() != "running":
            return f"{run} is not running"
        folder.stop_file.touch()
        return f"{run} saves after this step and ends"
    launch.stopped.touch()  # first: from here on the job does not requeue itself
    if now:
        slurm.cancel(record.job_id)
        return f"job {record.job_id} is cancelled; what came after the last checkpoint is lost"
    # Whichever it is by now: one that has begun meanwhile is left alone.
    slurm.cancel(record.job_id, only_pending=True)
    if job.state == "PENDING":
        return f"job {record.job_id} was waiting, and is cancelled"
    folder.stop_file.touch()
    return f"job {record.job_id} saves after this step and ends"
