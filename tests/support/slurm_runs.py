"""Trainings on the test cluster: submitted by the command that users type, watched through the files of the run."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import ROOT, losses
from tests.support.slurm_cluster import Cluster

CHAOS = ROOT / "tests/support/chaos"


class SlurmRun:
    """A run of one process a node, with the folder that holds its config."""

    def __init__(self, cluster: Cluster, config: Path, folder: Path, slow_s: float = 0.1, **site: object) -> None:
        self.cluster, self.config, self.run = cluster, config, folder / "run"
        self.job = ""
        values: dict[str, object] = {
            "nodes": 2,
            "cpus_per_task": 1,
            "time": "0:30:00",
            "signal_lead_s": 30,
            "network_interface": "eth0" if cluster.layout.isolated else "lo",
            # Slow steps, so that there is time to do something to a run; idle, so that others may use the machine.
            "environment": {
                "PYTHONPATH": f"{CHAOS}:{ROOT}",
                "CHAOS": f"slow_step:seconds={slow_s}",
                "OMP_NUM_THREADS": "1",
            },
            **site,
        }
        self.site = folder / "cluster.yaml"
        self.site.write_text(yaml.safe_dump(values))

    def pretrain(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command, as typed on the login node."""
        done = subprocess.run(
            [sys.executable, "-m", "pretrain.cli", *map(str, arguments)],
            env={**self.cluster.environment, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def submit(self, *overrides: str) -> str:
        """Launch; returns the job's id."""
        self.try_submit(*overrides, check=True)
        self.job = str(yaml.safe_load((self.run / "launch" / "job.json").read_text())["job_id"])
        return self.job

    def try_submit(self, *overrides: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Launch, for better or worse."""
        command = ("launch", "slurm", self.config, "--cluster", self.site, f"run.dir={self.run}", *overrides)
        return self.pretrain(*command, check=check)

    def status(self) -> dict[str, Any]:
        """What `pretrain status` says."""
        found: dict[str, Any] = json.loads(self.pretrain("status", "--json", self.run).stdout)
        return found

    @property
    def losses(self) -> dict[int, float]:
        """By step."""
        return losses(self.run / "metrics.jsonl")

    @property
    def attempt(self) -> int:
        """Starts so far."""
        return int(_read(self.run / "attempt") or 0)

    @property
    def word(self) -> str:
        """RUN/status."""
        return _read(self.run / "status").strip()

    def wait_for_step(self, step: int, timeout: float = 600) -> None:
        """Until the metrics hold a step."""
        self.wait_for(lambda: max(self.losses, default=0) >= step, f"step {step}", timeout)

    def wait_for_attempt(self, attempt: int, timeout: float = 600) -> None:
        """Until the run was started so often."""
        self.wait_for(lambda: self.attempt >= attempt, f"start {attempt}", timeout)

    def wait_done(self, timeout: float = 600) -> None:
        """Until the run is done, and its job too."""
        self.wait_for(lambda: self.word == "done", "the run done", timeout)
        self.cluster.wait_for_state(self.job, "COMPLETED")

    def wait_for(self, reached: Callable[[], bool], what: str, timeout: float) -> None:
        """Until something holds; fails with the job's log when it does not, or when the job has ended before."""
        deadline = time.monotonic() + timeout
        looked = 0.0
        while not reached():
            if time.monotonic() - looked > 3:
                looked = time.monotonic()
                state = self.cluster.state(self.job)
                ended = state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
                assert not ended or reached(), f"{what}: the job is {state}\n{self.describe()}"
            assert time.monotonic() < deadline, f"no {what} in {timeout:.0f} s\n{self.describe()}"
            time.sleep(0.05)

    def describe(self) -> str:
        """Everything that was written about the run, for a test that failed."""
        files = [*sorted((self.run / "logs").rglob("*.log")), self.run / "launch" / "history.tsv"]
        return "\n".join(f"--- {path.relative_to(self.run)}\n{_read(path)[-3000:]}" for path in files)

    def rank_process(self, rank: int, place: str = "pretrain.train") -> int:
        """The process id, on this host, of a rank."""
        node = self.cluster.nodes_of(self.job)[rank]
        # Not srun or the wrapper, which have the same words in their command lines.
        found = [
            pid
            for pid, line in self.cluster.processes(node).items()
            if place in line and line.startswith(sys.executable)
        ]
        assert len(found) == 1, (node, self.cluster.processes(node))
        return found[0]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
