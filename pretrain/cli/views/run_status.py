"""Terminal view of `pretrain status`: a few plain lines per run, refreshed with `--watch`."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.status import RunStatus, read_status
from pretrain.report.numbers import format_count, format_seconds

STYLES = {"running": "green", "done": "bold green", "failed": "bold red", "crashed": "bold red"}
EVERY_S = 5.0


def render(statuses: Sequence[RunStatus]) -> Group:
    """All runs, stacked."""
    return Group(*(part for status in statuses for part in _parts(status)))


def watch(runs: Sequence[Path], console: Console) -> None:
    """Refresh until Ctrl-C, or until all runs are done."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = [read_status(run) for run in runs]
            live.update(render(statuses), refresh=True)
            if all(status.status == "done" for status in statuses):
                return
            time.sleep(EVERY_S)


def rows(status: RunStatus) -> Iterator[tuple[str, str]]:
    """(name, text) of the known values."""
    total = "?" if status.total_steps is None else f"{status.total_steps:,}"
    loss = "" if status.loss is None else f", loss {status.loss:.4f}"
    yield "step", f"{status.step:,} of {total}{loss}, attempt {status.attempt}"
    if status.failure is not None and status.failure["hint"]:
        yield "hint", status.failure["hint"]
    if status.tokens_per_second is not None:
        speed = f"{format_count(status.tokens_per_second)} tokens/s"
        if status.model_tflops_per_second is not None:
            speed += f", {format_flops(status.model_tflops_per_second)}"
        speed += "" if status.mfu is None else f", MFU {status.mfu:.1%}"
        left = "" if status.seconds_left is None else f", {format_seconds(status.seconds_left)} left at this speed"
        yield "speed", speed + left
    if status.checkpoint_step is not None and status.checkpoint_age_s is not None:
        yield "saved", f"step {status.checkpoint_step:,}, {format_seconds(max(0, status.checkpoint_age_s))} ago"
    if status.job is not None:
        job = status.job
        state = "not in the queue" if job["state"] is None else job["state"]
        state += f" ({job['reason']})" if job.get("reason", "None") not in ("None", "") else ""
        nodes = f" on {job['nodes']}" if job.get("nodes") else ""
        left = f", {job['left']} of its time left" if job.get("state") == "RUNNING" else ""
        yield "job", f"{job['id']} {state}{nodes}, start {job['restart'] + 1}{left}"


def format_flops(tflops: float) -> str:
    """Model FLOP/s with three digits and a unit in which they can be read: 7.58 model GFLOP/s."""
    for unit, size in (("PFLOP", 1e3), ("TFLOP", 1.0), ("GFLOP", 1e-3)):
        if tflops >= size:
            return f"{tflops / size:,.3g} model {unit}/s"
    return f"{tflops / 1e-6:,.3g} model MFLOP/s"


def _parts(status: RunStatus) -> Iterator[Table | Text]:
    head = Text(status.run, style="bold")
    head.append(f"  {status.why}", style=STYLES.get(status.status or "", "yellow"))
    yield head
    table = Table.grid(padding=(0, 2))
    for name, text in rows(status):
        table.add_row(f"  {name}", Text(text))
    yield table
    for line in status.log:
        yield Text(f"  | {line}", style="dim")
