"""Training processes that start in a second: forked from one that has imported torch and DeepSpeed, and nothing of ours.

A start of a small run is nearly all imports, and chaos starts hundreds. The child imports our own modules itself, so that
faults find them as in a process of its own.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.helper_processes import Child, say

CHAOS = str(Path(__file__).parent / "chaos")


class Born:
    """A process of the prefork, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, prefork: "Prefork", pid: int) -> None:
        self.pid, self.returncode, self._prefork = pid, None, prefork

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._prefork.ask({"poll": self.pid})["returncode"]
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while (found := self.poll()) is None:
            assert time.monotonic() < deadline, f"process {self.pid} lives after {timeout} s"
            time.sleep(0.01)
        return found

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # not reaped before `poll` says so: the number is still its own
            os.kill(self.pid, number)


class Prefork(Child):
    """The process from which they are forked. Several threads may ask."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        super().__init__("tests.support.prefork")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._turn:
            return super().ask(message)

    def start(self, arguments: list[str], environment: dict[str, str], errors: Path) -> Born:
        """`python -m pretrain.train ARGUMENTS`, its stderr in a file."""
        born = self.ask({"arguments": arguments, "environment": environment, "errors": str(errors)})
        return Born(self, born["pid"])


@pytest.fixture(name="prefork", scope="module")
def prefork_fixture() -> Iterator[Prefork]:
    """One for all tests of a file."""
    prefork = Prefork()
    yield prefork
    prefork.stop()


def serve() -> None:
    """Fork and reap, a message a line; kills what is left when the standard input ends."""
    alive: set[int] = set()
    say({})
    for line in sys.stdin:
        message = json.loads(line)
        if "poll" in message:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            alive.discard(pid)
            say({"returncode": os.waitstatus_to_exitcode(status) if pid else None})
            continue
        pid = os.fork()
        if pid == 0:
            train(message)
        alive.add(pid)
        say({"pid": pid})
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def train(message: dict[str, Any]) -> None:
    """The child's side: become a training process as far as anything can see it."""
    with open(os.devnull, "r+") as null, open(message["errors"], "w") as errors:  # noqa: PTH123
        for target, file in ((0, null), (1, null), (2, errors)):
            os.dup2(file.fileno(), target)
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.path.insert(0, CHAOS)
    sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
        sys.argv = ["pretrain.train", *message["arguments"]]
        runpy.run_module("pretrain.train", run_name="__main__", alter_sys=True)
    finally:
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(1)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in (
        "torch",
        "deepspeed",
        "numpy",
        "webdataset",
        "omegaconf",
        "fsspec",
        "rich.progress",
        "safetensors.torch",
    ):
        importlib.import_module(name)
    serve()
