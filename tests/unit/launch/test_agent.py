"""torchrun's agent as we start it: the exit code of the process that failed, and none of torchrun's own words."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.agent import EndedProcess, cause_of, exit_code
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("codes", "rank", "code"),
    [
        ([3, 3], 0, 3),
        ([1, 3], 1, 3),  # rank 0 lost the connection to rank 1
        ([1, -signal.SIGKILL], 1, 137),
        ([-signal.SIGTERM, 75], 1, 75),  # torchrun ended rank 0
        ([-signal.SIGTERM, 1], 1, 1),
    ],
)
def test_the_process_to_report_is_not_one_that_only_lost_another(codes: list[int], rank: int, code: int) -> None:
    cause = cause_of([EndedProcess(number, 0, found) for number, found in enumerate(codes)])
    assert (cause.rank, exit_code(cause)) == (rank, code)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("print('error: ours', file=sys.stderr); sys.exit(3)", 3, "error: ours"),
        ("os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL"),
    ],
)
def test_the_error_of_a_process_is_the_last_line_and_its_code_the_agents(
    end: str, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text(f"import os, sys\n{end}\n")
    log = tmp_path / "logs" / "torchrun.log"
    options = ["--standalone", "--nproc-per-node=1", str(tmp_path / "ends.py")]
    done = subprocess.run(
        [sys.executable, "-m", "launch.agent", str(log), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "exitcode" in log.read_text()
