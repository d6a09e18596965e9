"""Python processes that start in 50 ms: forked from one that has imported torch and DeepSpeed, and nothing of ours.

Cold, a start of a training process is 3 s of CPU time for imports, and the tests start hundreds. The child imports our own
modules itself, so that faults find them as in a cold process.

Two ways in: `Prefork.start` for training processes whose id a test needs (to stop them, to look into /proc), and
`Prefork.python`, a script that stands for the interpreter: it runs `-m MODULE` through the socket and everything else cold.
Its process passes signals on and ends as the forked one does.

    script ── socket ──► keeper ── fork ──► the module              the server forks a keeper for each script
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from launch.processes import descendants
from tests.support.helper_processes import Child, say
from tests.support.repository import ROOT

CHAOS = str(Path(__file__).parent / "chaos")
CLIENT = Path(__file__).parent / "prefork_client.py"
PRELOADED = (
    *("torch", "torch.distributed.run", "deepspeed", "numpy", "webdataset", "omegaconf", "fsspec", "click"),
    *("rich.progress", "rich.table", "safetensors.torch", "sentencepiece", "tokenizers", "zstandard"),
    *("torch.utils.tensorboard", "multiprocessing.spawn", "multiprocessing.forkserver"),
    # Imported by torch.optim, by deepspeed.initialize and by an export, when they are first called.
    *("torch._dynamo", "deepspeed.ops.op_builder.all_ops", "deepspeed.module_inject.auto_ep_layer"),
    *("deepspeed.runtime.zero.muon.muon_optimizer", "accelerate", "transformers.models.llama.modeling_llama"),
)


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
        self._folder = tempfile.TemporaryDirectory(prefix="prefork-")
        self.commands = Path(self._folder.name)
        (self.commands / "children").mkdir()
        super().__init__("tests.support.prefork", str(self.commands))
        client = f"{sys.executable} -I -S {CLIENT} {self.commands / 'socket'} {sys.executable}"
        self.python = self._script("python", f'exec {client} "$@"')
        self._script("pretrain", f'exec {client} --script {Path(sys.executable).parent / "pretrain"} pretrain.cli "$@"')

    def _script(self, name: str, line: str) -> str:
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return str(path)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._turn:
            return super().ask(message)

    def start(self, arguments: list[str], environment: dict[str, str], errors: Path) -> Born:
        """`python -m pretrain.train ARGUMENTS`, its stderr in a file."""
        born = self.ask({"arguments": arguments, "environment": environment, "errors": str(errors)})
        return Born(self, born["pid"])

    def family(self, pid: int) -> list[int]:
        """A process, all below it, and all that were forked for scripts among them."""
        found = [pid, *descendants(pid)]
        for member in found:  # grows meanwhile
            record = self.commands / "children" / str(member)
            if record.exists() and (child := int(record.read_text() or 0)) not in (0, *found):
                found += [child, *descendants(child)]
        return found

    def stop(self) -> None:
        super().stop()
        self._folder.cleanup()


@functools.cache
def shared_prefork() -> Prefork:
    """One for all tests of this process."""
    found = Prefork()
    atexit.register(found.stop)
    return found


@pytest.fixture(name="prefork", scope="session")
def prefork_fixture() -> Prefork:
    """The process from which trainings are forked."""
    return shared_prefork()


# --- the server's side ------------------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each message and connection; returns in the children, with what they are to become.

    Kills what is left when the standard input ends.
    """
    alive: set[int] = set()  # that nobody has asked after since they ended
    keepers: set[int] = set()
    say({})
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [], 1.0 if keepers else None)
        keepers -= {pid for pid in keepers if os.waitpid(pid, os.WNOHANG)[0]}
        if listener in ready:
            connection, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                listener.close()
                return keep(connection)
            connection.close()
            keepers.add(pid)
        if sys.stdin not in ready:
            continue
        line = sys.stdin.readline()
        if not line:
            break
        message = json.loads(line)
        if "poll" in message:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            alive.discard(pid)
            say({"returncode": os.waitstatus_to_exitcode(status) if pid else None})
            continue
        pid = os.fork()
        if pid == 0:
            listener.close()
            with open(os.devnull, "r+") as null, open(message["errors"], "w") as errors:  # noqa: PTH123
                for target, file in ((0, null), (1, null), (2, errors)):
                    os.dup2(file.fileno(), target)
            os.chdir(ROOT)
            return {"module": "pretrain.train", **message}
        alive.add(pid)
        say({"pid": pid})
    for pid in alive | keepers:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def keep(connection: socket.socket) -> dict[str, Any]:
    """A keeper's life: fork, tell the script the child's id and its end. Kills the child when the script is killed.

    Returns in the child.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    message: dict[str, Any] = json.loads(data)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        connection.close()
        die_with(keeper)
        os.setsid()  # a kill of its process group must not meet the server
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(message["folder"])
        return message
    for descriptor in descriptors:
        os.close(descriptor)
    Path("children", str(message["script_pid"])).write_text(str(pid))
    ended = os.pidfd_open(pid)
    with contextlib.suppress(OSError):
        connection.sendall(f"{pid}\n".encode())
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:  # the script sends no second word: it is gone
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def die_with(parent: int) -> None:
    """SIGKILL when the parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def become(message: dict[str, Any], path: list[str]) -> NoReturn:
    """The child's side: a new process as far as anything can see it."""
    environment = message["environment"]
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    inherited = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first = [] if "script" in message else [str(Path.cwd())]
    chaos = [CHAOS] if "errors" in message else []
    sys.path[:] = [*first, *chaos, *inherited, *path]
    sys.argv = [message.get("script", message["module"]), *message["arguments"]]
    if "python" in message:
        sys.executable = message["python"]  # its own children are warm too
    random.seed()  # every child has the server's state else
    sys.modules["numpy"].random.seed()
    if environment.get("CHAOS") or chaos:
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    runpy.run_module(message["module"], run_name="__main__", alter_sys=True)
    raise SystemExit(0)


def main() -> None:
    """Import, listen, serve; in each child, become the module and end as an interpreter does."""
    folder = Path(sys.argv[1])
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    for name in PRELOADED:
        importlib.import_module(name)
    # Ours are the child's to import; and runpy warns of a module that it finds imported.
    for name in [*sys.modules]:
        if name == "torch.distributed.run" or name.split(".")[0] in ("tests", "launch", "pretrain", "tokenizer"):
            del sys.modules[name]
    os.chdir(folder)
    given = {str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    path = [entry for entry in sys.path if entry not in given]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    gc.freeze()  # a collection in a child would copy every page
    become(serve(listener), path)


if __name__ == "__main__":
    main()
