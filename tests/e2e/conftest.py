"""The quickstart, once for all tests that look at what it leaves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.processes import ENVIRONMENT, python
from tests.support.repository import ROOT

SHORT = ("schedule.total_steps=24", "schedule.warmup_steps=4", "checkpoint.every_steps=6", "eval.every_steps=12")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone in which the quickstart has run, with fewer steps."""
    folder = tmp_path_factory.mktemp("workplace")
    small_configs(folder / "configs")
    for name in ("docs", "pretrain", "launch", "tokenizer", "benchmarks", "Makefile", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    done = run_in(folder, " ".join(["pretrain quickstart", *SHORT]), cold=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "quickstart.log").write_text(done.stdout)
    return folder


def small_configs(folder: Path) -> None:
    """The shipped configurations, with a fraction of the 2.4 million parameters that the commands of the guides train."""
    shutil.copytree(ROOT / "configs", folder)
    model = yaml.safe_load((folder / "models/2m.yaml").read_text())
    model["model"] |= {"n_layers": 2, "d_model": 96, "d_ff": 256}
    (folder / "models/2m.yaml").write_text(yaml.safe_dump(model))


def run_in(folder: Path, command: str, *, cold: bool = False) -> subprocess.CompletedProcess[str]:
    """A line as a user types it, with the virtual environment's commands on the path, or the prefork's in their place."""
    bin_folder = Path(sys.executable).parent
    first = bin_folder if cold or python() == sys.executable else Path(python()).parent
    environment = {**ENVIRONMENT, "PATH": f"{first}:{bin_folder}:{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
