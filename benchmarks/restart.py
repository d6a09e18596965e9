"""Where the seconds go from kill -9 of a rank to the next training step.

One process trains, is killed, and is started again; the second start notes the time at which it comes to each place.

`python -m benchmarks.restart [--rounds 3] [--report benchmarks/results/restart.md]`
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from tests.support.processes import ENVIRONMENT, kill_all, wait_for_step
from tests.support.runs import make_run


def stamps(config: Path, run: Path) -> list[tuple[str, float, float]]:
    """Seconds since the kill, and of CPU time, at which each part began; the last is the end of the first step."""
    command = [sys.executable, "-m", "pretrain.train", str(config), f"run.dir={run}"]
    first = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wait_for_step(run / "metrics.jsonl", 12, first)
    kill_all(first)
    killed = time.time()
    command = [sys.executable, "-m", "benchmarks.restart", "--child", str(config), f"run.dir={run}"]
    second = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    found = [("start of the process", 0.0, 0.0)]
    for line in second.stdout:
        if line.startswith("{"):
            stamp = json.loads(line)
            found.append((stamp["part"], stamp["time"] - killed, stamp["cpu"]))
            if stamp["part"] == "end":
                break
    kill_all(second)
    second.stdout.close()
    return found


def child(arguments: list[str]) -> None:
    """Train, and say when."""
    say("python and our light imports")
    from pretrain.training import process

    say("torch")
    import torch  # noqa: F401

    say("DeepSpeed")
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401

    say("our other imports")
    from pretrain.training import trainer
    from pretrain.training.startup import attempt

    say("config and data")
    around(process, "_configure_torch", "deterministic kernels", "process group")
    around(trainer, "Engine", "build the engine", "order, feed")
    around(attempt.Attempt, "begin", "claim, hash the checkpoint")
    around(trainer, "load_checkpoint", "load", "open files")
    around(trainer.Trainer, "_step", "first step", "end")
    process.main(arguments)


def around(owner: object, name: str, entered: str, left: str = "") -> None:
    """Say when a function is entered and left."""
    original = getattr(owner, name)

    def timed(*values: object, **options: object) -> object:
        say(entered)
        result = original(*values, **options)
        if left:
            say(left)
        return result

    setattr(owner, name, timed)


def say(part: str) -> None:
    print(json.dumps({"part": part, "time": time.time(), "cpu": time.process_time()}), flush=True)


def _row(part: str, values: list[tuple[float, float]], total: float) -> str:
    wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
    return f"| {part} | {wall:.2f} | {wall / total:.0%} | {cpu:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    parts: dict[str, list[tuple[float, float]]] = {}
    totals = []
    with tempfile.TemporaryDirectory(prefix="restart-") as scratch:
        folder = Path(scratch)
        engine = {"zero_stage": 2, "precision": "fp32", "device": "cpu", "threads_per_process": 1}
        schedule = {"total_steps": 1000, "warmup_steps": 5}
        config = make_run(folder, checkpoint={"every_steps": 5}, schedule=schedule, engine=engine)
        for number in range(options.rounds):
            found = stamps(config, folder / f"run-{number}")
            totals.append(found[-1][1])
            for (part, *begun), (_, *ended) in pairwise(found):
                parts.setdefault(part, []).append((ended[0] - begun[0], ended[1] - begun[1]))
    total = statistics.median(totals)
    lines = [
        "# From kill -9 to the next step",
        "",
        f"`python -m benchmarks.restart --rounds {options.rounds}` · {date.today()} · {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.0f} · {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"deepspeed {version('deepspeed')} · one process, 48k parameters",
        "",
        f"Median {total:.1f} s ({min(totals):.1f} to {max(totals):.1f}).",
        "",
        "| part | seconds (median) | share | CPU seconds |",
        "|---|---|---|---|",
        *(_row(part, values, total) for part, values in parts.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
