import io
from pathlib import Path

from rich.console import Console

from pretrain.training.console import ConsoleReporter


def reporter(
    folder: Path, *, terminal: bool = False, total: int = 100, every: int = 10
) -> tuple[ConsoleReporter, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=60, highlight=False)
    return ConsoleReporter(folder / "train.log", total_steps=total, every_steps=every, console=console), screen


def values(step: int, speed: float = 1_000.0, seconds: float = 0.5) -> dict[str, float]:
    return {"step": step, "loss": 2.5, "grad_norm": 0.25, "lr": 1e-3, "tokens_per_second": speed, "seconds": seconds}


def log_lines(folder: Path) -> list[str]:
    return [line.split("  ", 1)[1] for line in (folder / "train.log").read_text().splitlines()]


def test_without_a_terminal_lines_are_plain_and_unbroken(tmp_path: Path) -> None:
    report, screen = reporter(tmp_path)
    report.start(0)
    report.step(values(10))
    report.close()
    (line,) = screen.getvalue().splitlines()
    assert line == "step  10/100  loss 2.5000  grad 0.250  lr 1.00e-03  1.0k tok/s  left 0:45"
    assert "\x1b" not in screen.getvalue()


def test_the_first_the_last_and_every_nth_step_are_shown(tmp_path: Path) -> None:
    report, screen = reporter(tmp_path, total=35)
    report.start(0)
    for step in range(1, 36):
        report.step(values(step))
    report.close()
    shown = [int(line.split("/")[0].removeprefix("step")) for line in screen.getvalue().splitlines()]
    assert shown == [1, 10, 20, 30, 35]
    assert log_lines(tmp_path) == screen.getvalue().splitlines()


def test_on_a_terminal_a_bar_shows_and_the_log_stays_plain(tmp_path: Path) -> None:
    report, screen = reporter(tmp_path, terminal=True)
    report.start(40)
    report.step(values(50))
    report.say("saved step-00000050")
    report.close()
    assert "50/100" in screen.getvalue()
    assert log_lines(tmp_path) == [
        "step  50/100  loss 2.5000  grad 0.250  lr 1.00e-03  1.0k tok/s  left 0:25",
        "saved step-00000050",
    ]
    assert "\x1b" not in (tmp_path / "train.log").read_text()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h")  # the cursor is back


def test_text_in_brackets_is_no_markup(tmp_path: Path) -> None:
    report, screen = reporter(tmp_path)
    report.say("shards [bold]/data/web[/bold] [0:3]")
    report.close()
    assert screen.getvalue() == "shards [bold]/data/web[/bold] [0:3]\n"


def test_the_log_is_continued_by_the_next_attempt(tmp_path: Path) -> None:
    for text in ("first", "second"):
        report, _ = reporter(tmp_path)
        report.say(text)
        report.close()
    assert log_lines(tmp_path) == ["first", "second"]


def test_one_slow_step_does_not_double_the_time_left(tmp_path: Path) -> None:
    report, screen = reporter(tmp_path, every=1)
    report.start(0)
    report.step(values(1, seconds=1.0))
    report.step(values(2, seconds=11.0, speed=0.0))
    report.close()
    first, second = screen.getvalue().splitlines()
    assert first.endswith("1.0k tok/s  left 1:39")
    assert second.endswith(" 900 tok/s  left 3:16")  # 98 steps of 0.9 · 1 + 0.1 · 11 seconds
