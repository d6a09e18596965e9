"""Where the seconds go from kill -9 of a rank to the next training step, in a job of a real SLURM.

Two nodes of the cluster that the tests use, a process each. What SLURM waits for depends on its configuration; that of the
test cluster is in tests/support/slurm_config.py.

`python -m benchmarks.requeue [--rounds 3] [--report benchmarks/results/requeue.md]`
"""

import argparse
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from pretrain.checkpoint.layout import list_steps
from tests.support.runs import make_run
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_runs import SlurmRun

KILL_AT = 10
PARTS = (
    "the other rank ends, srun and the batch script notice",
    "SLURM ends what is left of the job",
    "SLURM waits: a requeued job may begin after cred_expire (6 s here, 120 s by default)",
    "batch script, Python, configuration and data",
    "torch, DeepSpeed, process group, engine",
    "claim, hash and load the checkpoint, first step",
)


def measure(run: SlurmRun) -> list[float]:
    """Seconds of each part, from one kill."""
    run.submit()
    run.wait_for_step(KILL_AT)
    saved = list_steps(run.run / "checkpoints")[-1]
    beat = run.run / "heartbeats" / "rank-00000.json"
    os.kill(run.rank_process(1), signal.SIGKILL)
    stamps = [time.monotonic()]
    state = ""
    before = changed(beat)

    def is_now(*states: str) -> bool:
        nonlocal state
        state = run.cluster.state(run.job)
        return state in states

    marks: list[Callable[[], bool]] = [
        lambda: not is_now("RUNNING"),
        lambda: is_now("PENDING", "CONFIGURING") or run.attempt > 1,
        lambda: is_now("RUNNING"),
        # Rank 0 replaces the one it left, or one that was killed leaves it.
        lambda: before != changed(beat) and changed(beat) > 0,
        lambda: run.attempt > 1,
        # A resume takes away the lines behind the checkpoint, and each new step brings one.
        lambda: resumed_and_stepped(run, saved),
    ]
    for reached in marks:
        while not reached():
            if stamps[-1] + 600 < time.monotonic():
                raise AssertionError(run.describe())
            time.sleep(0.05)
        stamps.append(time.monotonic())
        before = changed(beat) if len(stamps) == 4 else before
    run.wait_done()
    return [later - earlier for earlier, later in pairwise(stamps)]


def resumed_and_stepped(run: SlurmRun, saved: int) -> bool:
    """Whether the second start has written a step: a file of replaced lines is there, or none had to be replaced."""
    resumed = any("resumed at step" in path.read_text() for path in (run.run / "logs").glob("*/rank-0000.log"))
    return resumed and max(run.losses, default=0) > saved


def changed(path: Path) -> int:
    """When, 0 for never."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    rounds = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="requeue-") as scratch, Cluster(nodes=3) as cluster:
        config = make_run(Path(scratch), schedule={"total_steps": 30, "warmup_steps": 5}, checkpoint={"every_steps": 4})
        for number in range(options.rounds):
            folder = Path(scratch) / f"round-{number}"
            folder.mkdir()
            rounds.append(measure(SlurmRun(cluster, config, folder)))
            print([round(seconds, 2) for seconds in rounds[-1]], flush=True)
        slurm = cluster.run("slurmd", "-V")
    totals = [sum(parts) for parts in rounds]
    total = statistics.median(totals)
    rows = [(name, statistics.median(column)) for name, column in zip(PARTS, zip(*rounds, strict=True), strict=True)]
    lines = [
        "# From kill -9 of a rank to the next step, under SLURM",
        "",
        f"`python -m benchmarks.requeue --rounds {options.rounds}` · {date.today()} · {os.cpu_count()} cores, load "
        f"{load:.0f} · {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, deepspeed "
        f"{version('deepspeed')}, {slurm} · two nodes, a process each, 48k parameters",
        "",
        f"Median {total:.1f} s ({min(totals):.1f} to {max(totals):.1f}).",
        "",
        "| part | seconds (median) | share |",
        "|---|---|---|",
        *(f"| {name} | {seconds:.1f} | {seconds / total:.0%} |" for name, seconds in rows),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
