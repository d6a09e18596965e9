"""torchrun on one machine, as a child shielded from signals.

torchrun's agent (agent.py) dies of USR1, and after TERM gives its workers little time. So it runs in a session of its own,
out of reach of the terminal's Ctrl-C, and a signal to the launcher becomes the run's stop file: all ranks agree on a step,
save, and exit with 0.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from launch.agent import agent_command
from launch.processes import kill_tree
from launch.restarts import StartOutcome, newest_step, reason_not_to_restart
from pretrain.failure import describe_failure, record_failure
from pretrain.run_folder import RunFolder

POLL_SECONDS = 0.2


def torchrun_command(config: str, overrides: Sequence[str], nproc: int, folder: RunFolder) -> list[str]:
    """Command line. `--` ends torchrun's own options: it would otherwise match abbreviations of them in the arguments."""
    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={nproc}", "--module", "--"]
    return [*agent_command(folder.logs / "torchrun.log"), *options, "pretrain.train", config, *overrides]


def launch_local(config: str, overrides: Sequence[str], nproc: int, folder: RunFolder) -> int:
    """Run until the end, or until a signal stops it. Returns the exit code of the process that failed, or 0."""
    folder.stop_file.unlink(missing_ok=True)
    return _run_once(config, overrides, nproc, folder, [])


def launch_with_restarts(
    config: str, overrides: Sequence[str], nproc: int, folder: RunFolder, max_restarts: int
) -> int:
    """Like `launch_local`, with restarts after a crash or hang, as long as each start saves a new checkpoint."""
    folder.stop_file.unlink(missing_ok=True)
    for restarts in range(max_restarts + 1):
        number, step, asked = folder.attempt(), newest_step(folder.checkpoints), list[int]()
        code = _run_once(config, overrides, nproc, folder, asked)
        ended = StartOutcome(
            code=code,
            status=folder.status() if folder.attempt() > number else None,
            asked=bool(asked) or folder.stop_file.exists(),
            step_before=step,
            step_after=newest_step(folder.checkpoints),
        )
        reason = reason_not_to_restart(ended, restarts, max_restarts)
        if reason is not None:
            break
        print(f"exit code {code} at step {ended.step_after}: restart {restarts + 1} of {max_restarts}", flush=True)
    if code and max_restarts:
        print(f"not restarted: {reason}", file=sys.stderr, flush=True)
    return code


def _run_once(config: str, overrides: Sequence[str], nproc: int, folder: RunFolder, asked: list[int]) -> int:
    """Run torchrun once. Received signals are appended to `asked`."""
    number = folder.attempt()

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        say(acknowledgement(asked))

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, note) for number in handled}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads(nproc)),
        "PYTHONSAFEPATH": "1",  # a file in the working folder must not take the place of a module
    }
    command = torchrun_command(config, overrides, nproc, folder)
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while True:
            try:
                code = child.wait(POLL_SECONDS)
                if code and folder.attempt() > number:
                    _record_silent_end(folder, code, asked)
                return code
            except subprocess.TimeoutExpired:
                _forward_signals(asked, child, folder.stop_file)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if asked:
            folder.stop_file.unlink(missing_ok=True)


def acknowledgement(asked: Sequence[int]) -> str:
    """Answer to the last of the signals received."""
    if asked.count(signal.SIGINT) >= 2:
        return "killed; the same command resumes from the newest checkpoint"
    again = "; Ctrl-C again kills it" if asked[-1] == signal.SIGINT else ""
    return f"{signal.Signals(asked[-1]).name}: the run saves and ends after this step{again}"


def say(text: str) -> None:
    """Write a line to stderr at once. For signal handlers: print may not be entered a second time."""
    os.write(2, f"{text}\n".encode())


def _record_silent_end(folder: RunFolder, code: int, asked: Sequence[int]) -> None:
    """Record the end of a run whose processes could not: killed, or out of memory. Others have recorded theirs."""
    killed = "killed by a second Ctrl-C" if asked.count(signal.SIGINT) >= 2 else f"a process ended with code {code}"
    step = newest_step(folder.checkpoints)
    failure = describe_failure(RuntimeError(killed), rank=0, step=step, attempt=folder.attempt())
    record_failure(folder, replace(failure, reason=killed, bad_node=None))


def _forward_signals(asked: list[int], child: "subprocess.Popen[bytes]", stop_file: Path) -> None:
    """Signal: write the stop file, repeatedly, since a starting child removes an old one. Second Ctrl-C: kill now.

    By kill -9: torchrun's agent, terminated while its workers are slow to exit, leaves them running.
    """
    if asked.count(signal.SIGINT) >= 2:
        kill_tree(child.pid)
    elif asked and stop_file.parent.is_dir():
        stop_file.write_text(signal.Signals(asked[0]).name)


def _threads(nproc: int) -> str:
    return str(max(1, len(os.sched_getaffinity(0)) // nproc))
