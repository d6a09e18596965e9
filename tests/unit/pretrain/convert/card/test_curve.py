import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.convert.card.curve import CURVE, History, curve, read_history, training_history, write_curve
from pretrain.run_folder import RunFolder

SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, losses: list[Any], evaluations: list[dict[str, Any]]) -> RunFolder:
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 9')
    run.evaluations.write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    return run


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())] for line in found
    ]


def test_history_ends_at_the_step(tmp_path: Path) -> None:
    run = write_run(tmp_path, [5.0, 4.0, 3.0, 2.0], [{"step": 0, "loss": 6.0}, {"step": 4, "loss": 1.0}])
    history = read_history(run, 3)
    assert history == History(((1, 5.0), (2, 4.0), (3, 3.0)), ({"step": 0, "loss": 6.0},))


def test_lines_that_say_no_loss_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, [5.0, None, math.nan, math.inf, "x", 4.0], [])
    with run.metrics.open("a") as file:
        file.write('\n[1]\n{"step": "7", "loss": 1}\n{"loss": 1}\n\xff\n')
    assert read_history(run, 99).losses == ((1, 5.0), (6, 4.0))


def test_only_weights_in_a_run_have_a_history(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [5.0, 4.0], [])

    def history(folder: str | None) -> History | None:
        source: Any = SimpleNamespace(step=2) if folder is None else SimpleNamespace(step=2, folder=tmp_path / folder)
        return training_history(source)

    for folder in ("run/checkpoints/step-00000002", "run/weights/step-00000002"):
        found = history(folder)
        assert found is not None and len(found.losses) == 2
    assert history("run/exports/hf") is None and history(None) is None


@pytest.mark.parametrize("losses", [(), ((1, 2.0),)])
def test_there_is_no_picture_of_nothing(losses: tuple[tuple[int, float], ...], tmp_path: Path) -> None:
    assert write_curve(tmp_path, History(losses, ())) is None
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_both_losses_and_needs_nothing(tmp_path: Path) -> None:
    losses = tuple((step, 10.0 / step + 2) for step in range(1, 1001))
    history = History(losses, ({"step": 0, "loss": 10.4}, {"step": 500, "loss": 2.3}, {"step": 1000, "loss": 2.1}))
    assert write_curve(tmp_path, history) == CURVE
    svg = (tmp_path / CURVE).read_text()
    train, valid = polylines(svg)
    assert 300 <= len(train) <= 400 and len(valid) == 2
    # It falls: y grows downward.
    assert [y for _, y in train] == sorted(y for _, y in train)
    assert valid[1][0] == pytest.approx(706, abs=1) and valid[1][1] > valid[0][1]
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "") and "<script" not in svg
    assert {element.tag for element in ElementTree.fromstring(svg).iter()} <= {
        f"{SVG}{tag}" for tag in ("svg", "style", "rect", "line", "polyline", "circle", "title", "text")
    }


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_any_losses_stay_within_the_picture(losses: list[float]) -> None:
    svg = curve(History(tuple(enumerate(losses, 1)), ()))
    for line in polylines(svg):
        assert all(52 <= x <= 706.1 and 29.9 <= y <= 262.1 for x, y in line)
