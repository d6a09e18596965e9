"""Small runs through the command on one device: equal when repeated and resumed, at each ZeRO stage, and as on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.table import Row
from tests.support.repository import ROOT
from tests.support.runs import make_run

# Two devices, or two stages, add in another order: their losses part by rounding, which training amplifies.
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2}

Losses = list[float]


def check(folder: Path, device: str) -> list[Row]:
    """A row for each comparison of two runs of 30 steps."""
    config = make_run(folder, schedule={"total_steps": 30, "warmup_steps": 5, "kind": "constant"})

    def run(name: str, *overrides: str) -> Losses:
        return _train(config, folder / name, f"engine.device={device}", *overrides)

    rows = []
    on_cpu = run("cpu", "engine.device=cpu")
    for precision in ("fp32", "bf16"):
        chosen = f"engine.precision={precision}"
        first = run(f"{precision}-first", chosen)
        rows.append(_row("repeated", precision, first, run(f"{precision}-again", chosen), 0.0))
        run(f"{precision}-parts", chosen, "schedule.total_steps=14")
        rows.append(_row("stopped at 14 and resumed", precision, first, run(f"{precision}-parts", chosen), 0.0))
        for stage in (0, 1, 3) if precision == "fp32" else (1, 3):  # stage 0 is refused in half precision
            other = run(f"{precision}-{stage}", chosen, f"engine.zero_stage={stage}")
            rows.append(_row(f"ZeRO {stage} against 2", precision, first, other, ROUNDING[precision]))
        rows.append(_row("against fp32 on CPU", precision, on_cpu, first, ROUNDING[precision]))
    return rows


def _train(config: Path, run: Path, *overrides: str) -> Losses:
    command = [sys.executable, "-m", "pretrain.train", str(config), f"run.dir={run}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [loss for _, loss in sorted({line["step"]: line["loss"] for line in lines}.items())]


def _row(name: str, precision: str, first: Losses, other: Losses, allowed: float) -> Row:
    difference = max(abs(a - b) / abs(a) for a, b in zip(first, other, strict=True))
    return {
        "runs": name,
        "precision": precision,
        "largest difference of losses": f"{difference:.1e}",
        "allowed": f"{allowed:.0e}" if allowed else "0",
        "right": "yes" if difference <= allowed else "no",
    }
