"""One script for one GPU: is it right there, and how fast is it?

1. Kernels: attention and loss, forward and gradients, against the formula in float64   -> kernels.py
2. Runs: the command on this device: twice, resumed, at each ZeRO stage, against CPU    -> runs.py
3. Steps: tokens/s, model FLOPs and peak memory against the plan, a process each        -> steps.py

A wrong result ends the script with exit code 1, before the speed. Steps that do not fit into `--minutes` are named as left out.

`python -m benchmarks.gpu [--size full|tiny] [--device cuda|cpu] [--minutes 8] [--report FILE]`
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.gpu import kernels, runs, steps
from benchmarks.gpu.table import Row, markdown


def title(size: str, device: str) -> str:
    """Command, device, versions and date, for the head of a report."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return (
        f"# One {'GPU' if device == 'cuda' else 'CPU, in place of a GPU'}\n\n"
        f"`python -m benchmarks.gpu --size {size} --device {device}` · {date.today()} · {name} · Python "
        f"{platform.python_version()}, torch {torch.__version__}, deepspeed {version('deepspeed')}"
    )


def sections(size: str, device: str, deadline: float) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each table, as they are measured."""
    yield "Kernels against float64", kernels.check(size, device)
    with tempfile.TemporaryDirectory() as scratch:
        yield "Runs", runs.check(Path(scratch), device)
    with tempfile.TemporaryDirectory() as scratch:
        yield "Steps", steps.measure(Path(scratch), size, device, deadline)


def main() -> int:
    """Print each table when it is there; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    parts, failed = [title(options.size, options.device)], []
    print(parts[0], flush=True)
    for name, rows in sections(options.size, options.device, deadline):
        parts.append(f"## {name}\n\n{markdown(rows)}")
        print(f"\n{parts[-1]}", flush=True)
        failed += [row for row in rows if row.get("right") == "no"]
        if options.report:
            options.report.write_text("\n\n".join(parts) + "\n")
        if failed:
            print(f"\n{len(failed)} checks failed; what follows is not measured", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
