"""Tokenization of a large corpus as three dependent jobs: plan, array of encoders, merge.

Knows only arguments of `pretrain tokenizer encode`: `--plan`, `--task-id N --num-tasks K`, `--merge`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.slurm import commands as slurm
from launch.slurm.cluster import Cluster
from launch.slurm.cluster_rules import unsafe_path
from launch.slurm.script import EncodeJob, render_encode
from pretrain.errors import UserError

# Arguments added for each step. --task-id is known only inside an array element: the template adds it.
STEPS = {"plan": ("--plan",), "tasks": (), "merge": ("--merge",)}
_OURS = {"--plan", "--task-id", "--num-tasks", "--merge"}


class EncodeScript(NamedTuple):
    """Batch script of one step."""

    step: str
    path: Path
    text: str


def encode_scripts(arguments: Sequence[str], cluster: Cluster, *, tasks: int, records: Path) -> list[EncodeScript]:
    """Scripts in order of submission. Raises UserError for arguments that the launcher adds itself."""
    ours = [text for text in arguments if text.partition("=")[0] in _OURS]
    if ours:
        raise UserError(f"{ours[0]} is added by the launcher", hint="leave it out")
    records = records.absolute()
    for path in (records, Path.cwd()):
        if unsafe_path(str(path)):
            raise UserError(f"{str(path)!r} contains %, quotes, backslashes or newlines, which sbatch would misread")
    jobs = [
        EncodeJob(step, (*arguments, *added), tasks, records, Path.cwd(), cluster.job_name or records.name)
        for step, added in STEPS.items()
    ]
    return [EncodeScript(job.step, records / f"{job.step}.sbatch", render_encode(job, cluster)) for job in jobs]


def submit_scripts(scripts: Sequence[EncodeScript]) -> dict[str, int]:
    """Submit each step with a dependency on the success of the one before. Returns job IDs by step."""
    jobs: dict[str, int] = {}
    for script in scripts:
        script.path.parent.mkdir(parents=True, exist_ok=True)
        script.path.write_text(script.text)
        dependency = f"afterok:{list(jobs.values())[-1]}" if jobs else None
        jobs[script.step] = slurm.submit(script.path, dependency=dependency)
    return jobs
