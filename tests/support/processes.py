"""Real processes for tests: commands, trainings of several ranks, and killing them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.processes import descendants, kill_tree
from tests.support.prefork import Prefork, shared_prefork
from tests.support.repository import ROOT

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# The prefork has chosen the CPU, and a CUDA context does not outlive a fork. `make test-all` starts every process cold.
COLD = bool(os.environ.get("TESTS_COLD")) or Path("/dev/nvidiactl").exists()


def python(*, cold: bool = False) -> str:
    """The interpreter that commands run in: forked from one that has imported torch, unless it is to start `cold`."""
    return sys.executable if cold or COLD else shared_prefork().python


def pretrain(*arguments: str | Path, timeout: float = 300, cold: bool = False) -> subprocess.CompletedProcess[str]:
    """One `pretrain` command to its end."""
    command = [python(cold=cold), "-m", "pretrain.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def train(config: Path, nproc: int, *overrides: str, cold: bool = False) -> subprocess.CompletedProcess[str]:
    """A training by `nproc` processes; asserts that it succeeded."""
    done = pretrain("launch", "local", config, "--nproc", str(nproc), *overrides, cold=cold)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(config: Path, nproc: int, *overrides: str, cold: bool = False) -> "subprocess.Popen[bytes]":
    """The same, not waited for."""
    launch = ["-m", "pretrain.cli", "launch", "local", str(config), "--nproc", str(nproc), *overrides]
    return subprocess.Popen(
        [python(cold=cold), *launch], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def start_ranks(
    config: Path, nproc: int, *overrides: str, logs: Path, chaos: str = "", prefork: Prefork | None = None
) -> "list[subprocess.Popen[bytes]]":
    """A process a rank without a launcher, so that each one's exit code is seen; their stderr in `logs`/N.txt.

    `chaos` names faults of tests/support/chaos. A `prefork` spares them the imports.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **ENVIRONMENT,
        **{"CHAOS": chaos, "PYTHONPATH": f"{ROOT / 'tests/support/chaos'}:{ROOT}"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)},
    }
    command = [sys.executable, "-m", "pretrain.train", str(config), *overrides]
    processes: list[Any] = []
    logs.mkdir(parents=True, exist_ok=True)
    for rank in range(nproc):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if prefork is not None:
            processes.append(prefork.start([str(config), *overrides], own, logs / f"{rank}.txt"))
            continue
        with (logs / f"{rank}.txt").open("w") as errors:
            processes.append(
                subprocess.Popen(
                    command,
                    env=own,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            )
    return processes


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of a process and of everything below it."""
    started = shared_prefork.cache_info().currsize
    doomed = shared_prefork().family(process.pid) if started else [process.pid, *descendants(process.pid)]
    for pid in doomed:  # all at once, so that none sees another one end
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in doomed:
        kill_tree(pid)
    process.wait()


def wait_for_step(metrics: Path, step: int, process: "subprocess.Popen[bytes]", timeout: float = 120) -> None:
    """Until the metrics hold a step; fails when the process ends before."""
    deadline = time.monotonic() + timeout
    while len(losses(metrics)) < step:
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no step {step} in {timeout} s"
        time.sleep(0.05)


def losses(metrics: Path) -> dict[int, float]:
    """Loss by step; a line that is being written is left out."""
    if not metrics.exists():
        return {}
    lines = metrics.read_text().split("\n")[:-1]
    entries: Sequence[dict] = [json.loads(line) for line in lines]
    return {entry["step"]: entry["loss"] for entry in entries}
