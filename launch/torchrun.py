"""torchrun on one machine, as a child that a signal cannot hurt.

torchrun's agent dies of USR1 and passes TERM on with a short patience. So it runs in a session of its own, where the
terminal's Ctrl-C does not reach it, and a signal to us becomes the run's stop file: all ranks then agree on a step, save,
and end with exit code 0.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pretrain.processes import kill_tree

POLL_SECONDS = 0.2


def torchrun_command(config: str, overrides: Sequence[str], nproc: int) -> list[str]:
    """What to run. `--` ends torchrun's own options: it would otherwise take arguments that begin like one of them."""
    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={nproc}", "--module", "--"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "pretrain.train", config, *overrides]


def launch_local(config: str, overrides: Sequence[str], nproc: int, stop_file: Path) -> int:
    """Run to the end, or to a stop that a signal asked for. Returns torchrun's exit code."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, note) for number in handled}
    stop_file.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads(nproc))}
    child = subprocess.Popen(torchrun_command(config, overrides, nproc), env=environment, start_new_session=True)
    try:
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                _pass_on(asked, child, stop_file)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


def _pass_on(asked: list[int], child: "subprocess.Popen[bytes]", stop_file: Path) -> None:
    """Once: a stop file, for as long as the child lives (it may still be starting). Twice Ctrl-C: end it now.

    With kill -9: torchrun's agent, told to terminate while its workers take their time, leaves them behind.
    """
    if asked.count(signal.SIGINT) >= 2:
        kill_tree(child.pid)
    elif asked and stop_file.parent.is_dir():
        stop_file.write_text(signal.Signals(asked[0]).name)


def _threads(nproc: int) -> str:
    return str(max(1, len(os.sched_getaffinity(0)) // nproc))
