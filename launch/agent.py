"""torchrun without its own last words: `python -m launch.agent LOG OPTIONS …`, with torchrun's options.

Its messages and tracebacks go to the file LOG; the exit code is that of the process that failed. torchrun itself exits with 1
and prints 30 lines after the error that its process has printed.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CRASHED = 1


class EndedProcess(NamedTuple):
    """A process that failed; a negative code is the number of the signal that ended it."""

    rank: int
    pid: int
    code: int


def agent_command(log: Path) -> list[str]:
    """Start of a command line, to be followed by torchrun's options."""
    return [sys.executable, "-m", "launch.agent", str(log)]


def cause_of(ended: Sequence[EndedProcess]) -> EndedProcess:
    """The process to report. One that exits with 1 or from SIGTERM may just have lost the one that failed."""

    def rank_of(process: EndedProcess) -> int:
        return {-signal.SIGTERM: 3, CRASHED: 2}.get(process.code, 0 if process.code > 0 else 1)

    return min(ended, key=rank_of)


def exit_code(process: EndedProcess) -> int:
    """Code as a shell would give it."""
    return process.code if process.code > 0 else 128 - process.code


def main(arguments: Sequence[str]) -> None:
    """Run torchrun, and exit with the code of the process that failed."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    log, *options = arguments
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.handlers, logger.propagate = [], True
    logging.getLogger("torch").handlers = [_file_handler(log)]
    try:
        run.run(run.parse_args(options))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        logging.getLogger("torch").error("%s", error)
        failures: Mapping[int, Any] = error.failures
        cause = cause_of([EndedProcess(rank, found.pid, found.exitcode) for rank, found in failures.items()])
        if cause.code < 0:
            name = signal.Signals(-cause.code).name
            print(f"error: rank {cause.rank} (process {cause.pid}) was ended by {name}", file=sys.stderr)
        sys.exit(exit_code(cause))
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


def _file_handler(log: str) -> Any:
    import logging

    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        # Opened at its first line: a run that ends well leaves no file.
        handler: logging.Handler = logging.FileHandler(log, delay=True)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    return handler


if __name__ == "__main__":
    main(sys.argv[1:])
