import json
import os
import shutil
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from pretrain.errors import PretrainError
from pretrain.health.nodes.node_report import GIB, NodeReport, NodeRequirements, inspect_node

HEALTHY = "NVIDIA H100 80GB HBM3, 81559, 4, 0\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which prints the file beside it; fill the file."""
    answer = tmp_path / "bin" / "answer"
    answer.parent.mkdir()
    program = answer.with_name("nvidia-smi")
    program.write_text(f'#!/bin/sh\ncat "{answer}"\n[ -s "{answer}" ] || exit 9\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


def test_a_healthy_node_has_no_problems(tmp_path: Path, nvidia_smi: Path) -> None:
    nvidia_smi.write_text(2 * HEALTHY)
    report = inspect_node(NodeRequirements(memory=1000, free={str(tmp_path / "new"): 1000}, cuda=True), "n1")
    assert report.problems == []
    assert report.devices == 2 * ["NVIDIA H100 80GB HBM3, 81559 MiB"]
    assert report.node == "n1" and report.memory > 2**28
    assert set(report.versions) == {"Python", "pretrain", "torch", "deepspeed"}
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 9000, 0", "device 1: 9000 of 81559 MiB are in use"),
        ("NVIDIA H100 80GB HBM3, 81559, 4, 3", "device 1: 3 uncorrected memory errors"),
        (
            "Unable to determine the device handle for GPU 0000:3B:00.0: Unknown Error",
            "device 1: unexpected nvidia-smi output",
        ),
    ],
)
def test_a_device_that_is_not_free_or_not_well_is_a_problem(nvidia_smi: Path, row: str, said: str) -> None:
    nvidia_smi.write_text(HEALTHY + row + "\n")
    (problem,) = inspect_node(NodeRequirements(cuda=True), "n1").problems
    assert said in problem


def test_devices_without_error_correction_are_fine(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("NVIDIA GeForce RTX 4090, 24564, 11, [N/A]\n")
    assert inspect_node(NodeRequirements(cuda=True), "n1").problems == []


def test_a_driver_that_fails_is_a_problem_and_no_device_another(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("")
    first, second = inspect_node(NodeRequirements(cuda=True), "n1").problems
    assert "nvidia-smi failed with exit code 9" in first and "shows no device" in second


def test_cuda_without_a_device_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert inspect_node(NodeRequirements(), "n1").problems == []
    (problem,) = inspect_node(NodeRequirements(cuda=True), "n1").problems
    assert "engine.device=cuda" in problem


def test_too_little_memory_is_a_problem() -> None:
    (problem,) = inspect_node(NodeRequirements(memory=2**60), "n1").problems
    assert "of memory available" in problem and f"{2**60 / GIB:.1f} needed" in problem


def test_too_little_room_is_a_problem(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    (problem,) = inspect_node(NodeRequirements(free={str(tmp_path): 2 * free}), "n1").problems
    assert str(tmp_path) in problem and "GiB free" in problem


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (problem,) = inspect_node(NodeRequirements(free={str(tmp_path / "file" / "run"): 0}), "n1").problems
    assert "is not writable: Not a directory" in problem


def test_a_report_arrives_as_it_was_sent() -> None:
    report = NodeReport("n1", {"torch": "2.13"}, ["H100"], 7, ["late"], token="t", clock=1.5)
    assert NodeReport.from_line(report.to_line()) == report


@pytest.mark.parametrize(
    "change",
    [
        {"node": 3},
        {"versions": ["torch"]},
        {"devices": [1]},
        {"problems": 5},
        {"memory": "much"},
        {"clock": None},
        {"x": 1},
    ],
    ids=str,
)
def test_what_is_no_report_is_refused(change: dict) -> None:
    values = asdict(NodeReport("n1", {"torch": "2.13"}, ["H100"], 7, []))
    with pytest.raises(PretrainError, match="not a node report"):
        NodeReport.from_line(json.dumps({**values, **change}).encode())


@pytest.mark.parametrize("line", [b"", b"GET / HTTP/1.1\r\n", b"[]", b"\xff\n", b"[" * 60_000])
def test_what_a_stranger_writes_to_the_port_is_refused(line: bytes) -> None:
    with pytest.raises(PretrainError, match="not a node report"):
        NodeReport.from_line(line)
