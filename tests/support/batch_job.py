"""A training job's batch script, run by bash with stand-ins for SLURM's commands."""

import os
import subprocess
from pathlib import Path

from launch.slurm.cluster import Cluster
from launch.slurm.script import TrainJob, render_train

STAND_INS = {
    # Runs the body of a test in place of the training; `begin` is what a trainer does when it has claimed the run.
    "srun": """
begin() { echo $(($(cat "$RUN/attempt" 2>/dev/null || echo 0) + 1)) >"$RUN/attempt"; echo running >"$RUN/status"; }
save() { mkdir -p "$RUN/checkpoints/step-$1"; }
echo "$@" >>"$RUN/srun.txt"
case "$*" in *node_check*) eval "$NODE_CHECK"; exit 0;; esac
eval "$BODY"
""",
    "squeue": 'case "$*" in *%e*) echo "$END";; *) echo "$STATE";; esac',
    "scontrol": """
echo "$@" >>"$RUN/scontrol.txt"
case "$1" in
    show) if [ "$2" = hostnames ]; then echo localhost; else echo "NodeAddr=127.0.0.1 X=y"; fi;;
esac
""",
}


def render_job(cluster: Cluster, run: Path = Path("/runs/a")) -> str:
    return render_train(TrainJob(run, run / "launch" / "job-001.yaml", run.parent, run.name), cluster)


class BatchJob:
    """A job of number 77 in a folder of its own."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.run = folder / "my run"
        (self.run / "launch").mkdir(parents=True)
        self.commands = folder / "commands"
        self.commands.mkdir()
        for name, text in STAND_INS.items():
            path = self.commands / name
            path.write_text(f"#!/bin/bash\n{text}")
            path.chmod(0o755)
        self.script = self.run / "launch" / "job-001.sbatch"
        self.script.write_text(render_job(cluster, self.run))

    def begin(
        self, body: str, *, restart: int = 0, state: str = "RUNNING", **environment: str
    ) -> "subprocess.Popen[str]":
        """Start the script. `body` is what srun does."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        own |= {"RUN": str(self.run), "BODY": body, "STATE": state, "END": "N/A", "SLURM_JOB_ID": "77"}
        own |= {"SLURM_JOB_NODELIST": "n[1-2]", "PATH": f"{self.commands}:{os.environ['PATH']}", **environment}
        if restart:
            own["SLURM_RESTART_COUNT"] = str(restart)
        return subprocess.Popen(
            ["bash", str(self.script)], env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def go(self, body: str, **options: str | int) -> tuple[int, str]:
        """Run it to its end: exit code and output."""
        process = self.begin(body, **options)  # type: ignore[arg-type]
        shown, _ = process.communicate(timeout=120)
        return process.returncode, shown

    @property
    def requeued(self) -> bool:
        path = self.run / "scontrol.txt"
        return path.exists() and "requeue 77" in path.read_text()

    @property
    def last(self) -> list[str]:
        """What the history ends with."""
        return (self.run / "launch" / "history.tsv").read_text().splitlines()[-1].split("\t")[3:]
