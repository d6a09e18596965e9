import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import torchrun
from launch.torchrun import launch_local, torchrun_command
from pretrain.failure import read_failure
from pretrain.run_folder import RunFolder


def test_torchrun_understands_the_command_and_passes_all_arguments_on() -> None:
    from torch.distributed.run import get_args_parser

    # The last two are options of torchrun's own, and the ambiguous beginning of several.
    overrides = ["run.seed=3", "--max-restarts=9", "--n=2"]
    command = torchrun_command("conf dir/run.yaml", overrides, 3, RunFolder(Path("run")))
    assert command[:4] == [sys.executable, "-m", "launch.agent", "run/logs/torchrun.log"]
    options = get_args_parser().parse_args(command[4:])
    assert (options.nnodes, options.nproc_per_node, options.standalone, options.module) == ("1", "3", True, True)
    assert options.max_restarts == 0
    assert options.training_script == "pretrain.train"
    assert options.training_script_args == ["conf dir/run.yaml", *overrides]


def run_child(monkeypatch: pytest.MonkeyPatch, program: str, stop_file: Path) -> int:
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr(torchrun, "POLL_SECONDS", 0.02)
    return launch_local("run.yaml", [], 2, RunFolder(stop_file.parent))


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_that_of_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    assert run_child(monkeypatch, f"raise SystemExit({code})", tmp_path / "stop") == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_becomes_the_stop_file_and_does_not_reach_the_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """The child would die of any signal; it ends with 7 only when it sees the stop file."""
    stop_file, ready = tmp_path / "stop", tmp_path / "ready"
    program = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        f"while not os.path.exists({str(stop_file)!r}): time.sleep(0.01)\n"
        "raise SystemExit(7)"
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert run_child(monkeypatch, program, stop_file) == 7
    assert not stop_file.exists()


def test_a_second_ctrl_c_ends_the_child_at_once_and_both_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ready, first = tmp_path / "ready", tmp_path / "stop"
    program = f"import pathlib, time\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while not first.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    assert run_child(monkeypatch, program, first) == -signal.SIGKILL
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "SIGINT: the run saves and ends after this step; Ctrl-C again kills it"
    assert said[1].startswith("killed; the same command resumes")


def test_a_run_whose_processes_were_killed_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed processes cannot record one themselves."""
    folder = RunFolder(tmp_path)
    folder.make()
    program = (
        f"import pathlib\nrun = pathlib.Path({str(tmp_path)!r})\n(run / 'attempt').write_text('1')\n"
        "(run / 'status').write_text('running')\nraise SystemExit(137)"
    )
    assert run_child(monkeypatch, program, folder.stop_file) == 137
    found = read_failure(folder)
    assert folder.status() == "crashed" and found is not None and found.reason == "a process ended with code 137"


def test_an_old_stop_file_does_not_stop_a_new_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_file = tmp_path / "stop"
    stop_file.touch()
    program = f"import os\nraise SystemExit(9 if os.path.exists({str(stop_file)!r}) else 0)"
    assert run_child(monkeypatch, program, stop_file) == 0


def test_handlers_are_put_back_and_the_child_has_a_session_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    program = "import os\nraise SystemExit(0 if os.getsid(0) == os.getpid() else 1)"
    assert run_child(monkeypatch, program, tmp_path / "stop") == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("given", "expected"), [(None, max(1, len(os.sched_getaffinity(0)) // 2)), ("5", 5)])
def test_processes_share_the_cores_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    program = "import os\nraise SystemExit(int(os.environ['OMP_NUM_THREADS']))"
    assert run_child(monkeypatch, program, tmp_path / "stop") == expected


def test_a_file_in_the_working_folder_does_not_take_the_place_of_a_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pretrain.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: [sys.executable, "-m", "pretrain.train", "--help"])
    assert launch_local("run.yaml", [], 1, RunFolder(tmp_path)) == 0
