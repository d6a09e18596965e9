"""Tokenizing a large corpus as three jobs that wait for each other: a plan, an array that encodes, a merge.

Only argument strings of `pretrain tokenizer encode` are known here: `--plan`, `--task-id N --num-tasks K`, `--merge`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.slurm import commands as slurm
from launch.slurm.cluster import Cluster
from launch.slurm.cluster_rules import unsafe_path
from launch.slurm.script import EncodeJob, render_encode
from pretrain.errors import UserError

# Of each step: what is added to the arguments. The array's own are known in its elements alone.
STEPS = {"plan": ("--plan",), "tasks": (), "merge": ("--merge",)}
_OURS = {"--plan", "--task-id", "--num-tasks", "--merge"}


class EncodeScript(NamedTuple):
    """A job to be submitted."""

    step: str
    path: Path
    text: str


def encode_scripts(arguments: Sequence[str], cluster: Cluster, *, tasks: int, records: Path) -> list[EncodeScript]:
    """In the order of submission. Raises UserError for arguments that are added here."""
    ours = [text for text in arguments if text.partition("=")[0] in _OURS]
    if ours:
        raise UserError(f"{ours[0]} is added by the launcher itself", hint="name what else `tokenizer encode` needs")
    records = records.absolute()
    for path in (records, Path.cwd()):
        if unsafe_path(str(path)):
            raise UserError(
                f"{str(path)!r} has %, quotes, backslashes or line ends in it, which sbatch would not read as they are"
            )
    jobs = [
        EncodeJob(step, (*arguments, *added), tasks, records, Path.cwd(), cluster.job_name or records.name)
        for step, added in STEPS.items()
    ]
    return [EncodeScript(job.step, records / f"{job.step}.sbatch", render_encode(job, cluster)) for job in jobs]


def submit_scripts(scripts: Sequence[EncodeScript]) -> dict[str, int]:
    """Each begins when the one before has ended well; an array, when all of its elements have. Returns the jobs' numbers."""
    jobs: dict[str, int] = {}
    for script in scripts:
        script.path.parent.mkdir(parents=True, exist_ok=True)
        script.path.write_text(script.text)
        dependency = f"afterok:{list(jobs.values())[-1]}" if jobs else None
        jobs[script.step] = slurm.submit(script.path, dependency=dependency)
    return jobs
