import sys
from pathlib import Path

import pytest

from launch import torchrun
from launch.restarts import StartOutcome, newest_checkpoint, newest_step, reason_not_to_restart
from launch.torchrun import launch_with_restarts
from pretrain.run_folder import RunFolder

CRASH = StartOutcome(code=1, status="running", asked=False, step_before=10, step_after=20)


def test_a_crash_after_a_checkpoint_is_started_again() -> None:
    assert reason_not_to_restart(CRASH, 0, 1) is None
    assert reason_not_to_restart(CRASH._replace(status=None), 0, 1) is None


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"code": 0}, "ended normally"),
        ({"code": 0, "status": "unfinished"}, "ended normally"),
        ({"status": "done"}, "ended normally"),
        ({"asked": True}, "asked to stop"),
        ({"status": "failed"}, "would fail again"),
        ({"step_after": 10}, "no checkpoint was saved after step 10"),
    ],
)
def test_reasons_to_leave_it(change: dict, part: str) -> None:
    assert part in (reason_not_to_restart(CRASH._replace(**change), 0, 5) or "")


def test_restarts_are_counted() -> None:
    assert reason_not_to_restart(CRASH, 1, 2) is None
    assert "used up" in (reason_not_to_restart(CRASH, 2, 2) or "")
    assert "used up" in (reason_not_to_restart(CRASH, 0, 0) or "")


def test_the_newest_checkpoint_is_the_highest_number_that_is_whole(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None and newest_step(tmp_path) == 0
    for name in ("step-00000090", "step-00000100", "step-123456789", ".staging-step-999999999-1", "step-new"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-999999999").write_text("a file")
    assert newest_step(tmp_path) == 123_456_789


PROGRAM = """
import pathlib, sys
run = pathlib.Path(sys.argv[1])
number = int((run / "attempt").read_text()) + 1 if (run / "attempt").exists() else 1
(run / "attempt").write_text(str(number))
(run / "status").write_text("running")
code, saves = [(1, True), (75, True), (1, False), (0, True)][number - 1]
if saves:
    (run / "checkpoints" / f"step-{number:08d}").mkdir(parents=True)
raise SystemExit(code)
"""


@pytest.mark.parametrize(("max_restarts", "attempts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_training_is_started_again_while_it_gets_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_restarts: int, attempts: int, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: [sys.executable, "-c", PROGRAM, str(tmp_path)])
    folder = RunFolder(tmp_path)
    code = launch_with_restarts("run.yaml", [], 1, folder, max_restarts)
    assert (folder.attempt(), code) == (attempts, [1, 75, 1][attempts - 1])
    shown = capfd.readouterr()
    assert shown.out.count("restart ") == attempts - 1
    assert ("not restarted" in shown.err) == (max_restarts > 0)


def test_a_stop_file_that_nobody_took_is_a_wish_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = PROGRAM.replace("raise", '(run / "stop").touch()\nraise')
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: [sys.executable, "-c", program, str(tmp_path)])
    folder = RunFolder(tmp_path)
    assert launch_with_restarts("run.yaml", [], 1, folder, 5) == 1
    assert folder.attempt() == 1


def test_the_status_of_an_earlier_start_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    (tmp_path / "status").write_text("done")
    assert launch_with_restarts("run.yaml", [], 1, RunFolder(tmp_path), 5) == 1
    assert "no checkpoint was saved after step 0" in capfd.readouterr().err
