import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.run_folder import RunFolder
from pretrain.training.metrics import MetricsWriter, keep_until, read_lines


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    return folder


def values(step: int, loss: float = 2.0) -> dict[str, Any]:
    sources = {"web": {"tokens": 64 * step, "epochs": 0.1 * step}}
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "tokens_per_second": 9.0,
        "epoch": 0.1,
        "sources": sources,
    }


def write_steps(folder: RunFolder, steps: range, resumed_step: int = 0) -> None:
    writer = MetricsWriter(folder, resumed_step=resumed_step, tensorboard=False)
    for step in steps:
        writer.step(values(step))
        if step % 2 == 0:
            writer.evaluation({"step": step, "loss": 1.0})
    writer.close()


def steps_in(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def replaced(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.logs.iterdir())


def test_a_line_is_on_disk_before_the_next_step(folder: RunFolder) -> None:
    writer = MetricsWriter(folder, resumed_step=0, tensorboard=False)
    writer.step(values(1))
    assert steps_in(folder.metrics) == [1]
    writer.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.floats(allow_nan=False))
def test_numbers_keep_every_bit(tmp_path: Path, number: float) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    folder.metrics.unlink(missing_ok=True)
    writer = MetricsWriter(folder, resumed_step=0, tensorboard=False)
    writer.step(values(1, number))
    writer.close()
    (line,) = read_lines(folder.metrics)
    assert line["loss"] == number
    assert math.copysign(1, line["loss"]) == math.copysign(1, number)


def test_the_audit_is_rewound_with_the_metrics(folder: RunFolder) -> None:
    for resumed, steps in ((0, range(1, 8)), (4, range(5, 6))):
        writer = MetricsWriter(folder, resumed_step=resumed, tensorboard=False)
        for step in steps:
            writer.audit({"step": step, "digest": "0"})
        writer.close()
    assert steps_in(folder.audit) == [1, 2, 3, 4, 5]
    assert replaced(folder) == ["replaced-001-audit.jsonl"]


def test_resuming_goes_on_after_the_resumed_step(folder: RunFolder) -> None:
    write_steps(folder, range(1, 11))
    write_steps(folder, range(7, 9), resumed_step=6)
    assert steps_in(folder.metrics) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps_in(folder.evaluations) == [2, 4, 6, 8]


def test_what_a_resume_takes_away_is_kept_in_logs(folder: RunFolder) -> None:
    write_steps(folder, range(1, 11))
    before = folder.metrics.read_bytes()
    write_steps(folder, range(7, 9), resumed_step=6)
    assert replaced(folder) == ["replaced-001-evaluations.jsonl", "replaced-001-metrics.jsonl"]
    assert (folder.logs / "replaced-001-metrics.jsonl").read_bytes() == before


def test_each_replacement_has_a_number_of_its_own(folder: RunFolder) -> None:
    for until in (10, 9, 8):
        write_steps(folder, range(6, until + 1), resumed_step=5)
    assert [name for name in replaced(folder) if "metrics" in name] == [
        "replaced-001-metrics.jsonl",
        "replaced-002-metrics.jsonl",
    ]
    assert steps_in(folder.logs / "replaced-001-metrics.jsonl") == [6, 7, 8, 9, 10]
    assert steps_in(folder.logs / "replaced-002-metrics.jsonl") == [6, 7, 8, 9]


def test_nothing_is_replaced_where_nothing_is_beyond(folder: RunFolder) -> None:
    write_steps(folder, range(1, 7))
    before = folder.metrics.read_bytes()
    write_steps(folder, range(7, 7), resumed_step=6)
    assert folder.metrics.read_bytes() == before
    assert replaced(folder) == []


@pytest.mark.parametrize("left", [1, 10, -1])
def test_a_line_that_a_kill_cut_off_is_taken_away(folder: RunFolder, left: int) -> None:
    write_steps(folder, range(1, 4))
    whole = folder.metrics.read_bytes()
    cut = json.dumps(values(4))[:left]
    folder.metrics.write_bytes(whole + cut.encode())
    assert steps_in(folder.metrics) == [1, 2, 3]
    keep_until(folder.metrics, 100, folder.logs)
    assert folder.metrics.read_bytes() == whole
    assert (folder.logs / "replaced-001-metrics.jsonl").read_bytes() == whole + cut.encode()


def test_starting_from_scratch_takes_all_lines_away(folder: RunFolder) -> None:
    write_steps(folder, range(1, 4))
    keep_until(folder.metrics, 0, folder.logs)
    assert folder.metrics.read_bytes() == b""


def test_missing_and_empty_files_are_left_alone(folder: RunFolder) -> None:
    keep_until(folder.metrics, 5, folder.logs)
    assert not folder.metrics.exists()
    folder.metrics.touch()
    keep_until(folder.metrics, 5, folder.logs)
    assert read_lines(folder.metrics) == []
    assert replaced(folder) == []


def test_tensorboard_gets_steps_and_evaluations(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(folder, resumed_step=0, tensorboard=True)
    for step in (1, 2):
        writer.step(values(step, loss=3.0 - step))
    writer.evaluation({"step": 2, "loss": 0.5, "bits_per_byte": 0.25})
    writer.close()
    board = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(event.step, event.value) for event in board.Scalars("valid/bits_per_byte")] == [(2, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("data/tokens/web")] == [(1, 64.0), (2, 128.0)]
    assert "valid/step" not in board.Tags()["scalars"]


@pytest.mark.parametrize("file", ["_steps", "_evaluations"])
def test_a_full_disk_is_one_error_that_names_the_file(folder: RunFolder, file: str) -> None:
    writer = MetricsWriter(folder, resumed_step=0, tensorboard=False)
    getattr(writer, file).close()
    setattr(writer, file, open("/dev/full", "a"))  # noqa: PTH123, SIM115
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        (writer.step if file == "_steps" else writer.evaluation)(values(1))
    writer.close()  # the lost line is not reported again: the error above would be buried


@pytest.mark.parametrize(
    "damage", [b'{"step": 3, "lo\n', b"\0" * 64 + b"\n", b"\n", b"[3]\n", b'{"loss": 3}\n', b"\xff\xfe\n"]
)
@pytest.mark.parametrize("name", ["metrics", "evaluations", "samples", "audit"])
def test_a_damaged_line_is_moved_aside_with_a_note(folder: RunFolder, name: str, damage: bytes) -> None:
    path: Path = getattr(folder, name)
    path.write_bytes(b'{"step": 2}\n' + damage + b'{"step": 4}\n')
    writer = MetricsWriter(folder, resumed_step=6, tensorboard=False)
    writer.close()
    assert steps_in(path) == [2, 4]
    (note,) = writer.notes
    assert note.startswith(f"{path}: 1 damaged lines left out; {folder.logs}/replaced-001-")
    assert damage in (folder.logs / f"replaced-001-{path.name}").read_bytes()
