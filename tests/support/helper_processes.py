"""Helper processes of tests: a line of JSON when they are ready, one in answer to each that they are sent.

A child ends when its standard input does, so that none outlives the tests, however they end.
"""

import json
import subprocess
import sys
from typing import Any

from tests.support.repository import ROOT


class Child:
    """A running `python -m MODULE ARGUMENTS`; `ready` is the object that it printed first."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a message."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args} ended with {self._process.wait(30)}"
        found: dict[str, Any] = json.loads(line)
        return found


def say(message: dict[str, Any]) -> None:
    """A child's side: one line to the parent."""
    print(json.dumps(message), flush=True)
