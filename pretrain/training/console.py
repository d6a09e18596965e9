"""Console output of training: a progress bar on a terminal, plain lines elsewhere and in logs/train.log."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pretrain.config.schema import Config
from pretrain.plan.counts import count_parameters, plan_batch
from pretrain.report.numbers import format_count, format_seconds
from pretrain.storage.files import append_line

TRAINING = "train"


def headline(config: Config, world_size: int, device: str, step: int) -> str:
    """One line: model, engine, processes, batch, and the point to start from."""
    fresh = "from scratch" if config.run.init_from is None else f"from {config.run.init_from}"
    start = f"resumed at step {step}" if step else fresh
    return (
        f"{config.run.dir}: {format_count(count_parameters(config.model))} parameters, ZeRO stage "
        f"{config.engine.zero_stage}, {config.engine.precision}, {world_size} process{'es' if world_size > 1 else ''} on "
        f"{device}, {format_count(plan_batch(config, world_size).tokens_per_step)} tokens a step, {start}"
    )


class ConsoleReporter:
    """Console output of rank 0. `step` is called at every step; `every_steps` decides which are shown."""

    def __init__(self, log_file: Path, *, total_steps: int, every_steps: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._log = log_file.open("a")
        self._total, self._every = total_steps, every_steps
        self._speed = self._seconds_per_step = 0.0
        self._bar: Progress | None = None
        self._task: Any = None
        self._labelled = False

    def start(self, done_steps: int) -> None:
        """Show the progress bar, with `done_steps` done."""
        if self.console.is_terminal:
            self._bar = _make_bar(self.console)
            self._task = self._bar.add_task(TRAINING, total=self._total, completed=done_steps, status="", left="")
            self._bar.start()

    def label(self, text: str | None) -> None:
        """Label the bar; None for training. Without a bar, the first label of the process is a line."""
        if self._bar is not None:
            self._bar.update(self._task, description=text or TRAINING)
        elif text is not None and not self._labelled:
            self.console.print(f"{text} …", markup=False, soft_wrap=True)
        self._labelled = True

    def say(self, text: str) -> None:
        """Print a line above the bar, and append it to the log."""
        self.console.print(text, markup=False, soft_wrap=True)
        self._write(text)

    def step(self, values: dict[str, Any]) -> None:
        """Update the bar or print a line for a step with its metrics."""
        self._smooth(values)
        step, left = values["step"], (self._total - values["step"]) * self._seconds_per_step
        status = f"loss {values['loss']:.4f}  {format_count(self._speed)} tok/s"
        grad = "skipped" if values["grad_norm"] is None else f"{values['grad_norm']:.3f}"  # an overflow in fp16
        line = (
            f"step {step:>{len(str(self._total))}}/{self._total}  loss {values['loss']:.4f}  grad {grad}  "
            f"lr {values['lr']:.2e}  {format_count(self._speed)} tok/s  left {format_seconds(left)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status, left=format_seconds(left))
        if step % self._every == 0 or step in (1, self._total):
            if self._bar is None:
                self.console.print(line, markup=False, soft_wrap=True)
            self._write(line)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        with suppress(OSError):  # a line that could not be written has been reported
            self._log.close()

    def _smooth(self, values: dict[str, Any]) -> None:
        """Exponential moving average: one slow step must not double the time left."""
        fresh = self._speed == 0
        for name, value in (("_speed", values["tokens_per_second"]), ("_seconds_per_step", values["seconds"])):
            setattr(self, name, value if fresh else 0.9 * getattr(self, name) + 0.1 * value)

    def _write(self, text: str) -> None:
        append_line(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")


class _Steps(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Done and total."""
        return Text(f"{int(task.completed)}/{int(task.total or 0)}", style="progress.download")


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        _Steps(),
        TextColumn("{task.fields[status]}", style="cyan"),
        TextColumn("left {task.fields[left]}"),
        console=console,
        expand=True,
        refresh_per_second=4,
    )
