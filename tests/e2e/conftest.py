"""The quickstart, once for all tests that look at what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT

SHORT = ("schedule.total_steps=24", "schedule.warmup_steps=4", "checkpoint.every_steps=6", "eval.every_steps=12")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone in which the quickstart has run, with fewer steps."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "docs", "pretrain", "launch", "tokenizer", "benchmarks", "Makefile", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    done = run_in(folder, " ".join(["pretrain quickstart", *SHORT]))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "quickstart.log").write_text(done.stdout)
    return folder


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A line as a user types it, with the virtual environment's commands on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
