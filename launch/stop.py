"""`pretrain stop`: a run saves and ends, and its job does not requeue."""

from pathlib import Path

from launch.slurm import commands as slurm
from launch.slurm.job_record import LaunchFolder
from launch.status import is_run
from pretrain.errors import UserError
from pretrain.run_folder import RunFolder


def stop_run(run: Path, *, now: bool = False) -> str:
    """Stop a run; with `now`, cancel its job without a save. Returns a message.

    A pending job is cancelled: it has nothing to save, and would ignore a stop file older than its start.
    """
    folder, launch = RunFolder(run), LaunchFolder(run / "launch")
    if not is_run(run):
        raise UserError(f"{run} is not a run folder", hint="pass run.dir of the configuration")
    record = launch.read_record()
    try:
        job = None if record is None else slurm.find_job(record.job_id)
    except slurm.SlurmError as error:
        if now:
            raise
        launch.stopped.touch()
        folder.stop_file.touch()
        return f"{error.message}; a running job saves and ends, a pending one will not start"
    if record is None or job is None:
        if now:
            raise UserError(f"run {run} has no job to cancel", hint="without --now it saves and ends")
        if folder.status() != "running":
            return f"{run} is not running"
        folder.stop_file.touch()
        return f"{run} saves after this step and ends"
    launch.stopped.touch()  # first: from now on the job does not requeue itself
    if now:
        slurm.cancel(record.job_id)
        return f"job {record.job_id} is cancelled; steps after the last checkpoint are lost"
    # Pending only: a job that has started meanwhile must save first.
    slurm.cancel(record.job_id, only_pending=True)
    if job.state == "PENDING":
        return f"job {record.job_id} was pending and is cancelled"
    folder.stop_file.touch()
    return f"job {record.job_id} saves after this step and ends"
