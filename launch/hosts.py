"""Multi-machine launch without a scheduler: one torchrun per machine over ssh, with the first machine as rendezvous.

Static rendezvous: each agent gets its node rank as an option. All machines must see the same paths (code, configuration,
data, run). A failing machine ends the others, which would otherwise wait for it.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from launch.agent import agent_command
from launch.torchrun import acknowledgement, say
from pretrain.errors import UserError
from pretrain.failure import read_failure
from pretrain.run_folder import RunFolder

SSH = ("ssh", "-tt", "-o", "BatchMode=yes")  # -tt: with a terminal, killing ssh ends the remote command
# Environment variables forwarded to the remote processes.
_PASSED = re.compile(r"PYTHONPATH|(NCCL|GLOO|OMP|TORCH|PYTORCH|CUDA|FI|UCX)_\w+")
_HOST = re.compile(r"[A-Za-z0-9_][\w.@:-]*")
_LINE = re.compile(r"(?P<host>\S+)(?:\s+slots\s*=\s*(?P<slots>\d+))?")
POLL_SECONDS = 0.2
GRACE_S = 30.0


class Host(NamedTuple):
    """A machine and its number of processes (slots)."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Parse DeepSpeed's format: `NAME slots=8` per line, `#` comments. Raises UserError naming every bad line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"hostfile {path} cannot be read: {error}", hint="one line per machine: NAME slots=8"
        ) from error
    hosts, problems = [], []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or not _HOST.fullmatch(match["host"]) or match["slots"] == "0":
            problems.append(f"line {number}: {text!r} is not NAME slots=N")
        else:
            hosts.append(Host(match["host"], int(match["slots"] or 1)))
    names = [host.name for host in hosts]
    problems += [f"{name} is listed {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]
    if len({host.slots for host in hosts}) > 1:
        problems.append(f"slots differ ({', '.join(f'{host.name}: {host.slots}' for host in hosts)}) but must be equal")
    if problems or not hosts:
        raise UserError("\n  - ".join([f"hostfile {path} cannot be used:", *(problems or ["it lists no machine"])]))
    return hosts


def format_hostfile(hosts: Sequence[Host]) -> str:
    """Write the format of `read_hostfile`, which `deepspeed --hostfile` reads too."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def host_commands(
    config: str,
    overrides: Sequence[str],
    hosts: Sequence[Host],
    *,
    port: int,
    environment: Mapping[str, str],
    folder: Path,
    logs: Path,
) -> list[str]:
    """One shell command per machine, the head first. `logs` gets torchrun's messages."""
    variables = [f"{name}={value}" for name, value in sorted(environment.items()) if _PASSED.fullmatch(name)]
    head = hosts[0].name.rpartition("@")[2]
    commands = []
    for rank, host in enumerate(hosts):
        options = [f"--nnodes={len(hosts)}", f"--node-rank={rank}", f"--nproc-per-node={host.slots}"]
        options += [f"--master-addr={head}", f"--master-port={port}", "--max-restarts=0", "--shutdown-timeout=60"]
        agent = [
            *agent_command(logs / f"torchrun-{rank}.log"),
            *options,
            "--module",
            "--",
            "pretrain.train",
            config,
            *overrides,
        ]
        command = shlex.join(["env", *variables, *agent])
        commands.append(f"cd {shlex.quote(str(folder))} && exec {command}")
    return commands


def launch_hosts(commands: Sequence[str], hosts: Sequence[Host], folder: RunFolder, ssh: Sequence[str] = SSH) -> int:
    """Run all commands. A signal writes the stop file, a second Ctrl-C ends them. Returns the first non-zero exit code."""
    asked: list[int] = []
    stop_file, number, ended = folder.stop_file, folder.attempt(), ""

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        say(acknowledgement(asked))

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, note) for number in handled}
    stop_file.unlink(missing_ok=True)
    children = [
        subprocess.Popen([*ssh, host.name, command], start_new_session=True, stdin=subprocess.DEVNULL)
        for host, command in zip(hosts, commands, strict=True)
    ]
    try:
        while True:
            codes = [child.poll() for child in children]
            bad = next((index for index, code in enumerate(codes) if code), None)
            if bad is not None:
                ended = f"error: {hosts[bad].name} exited with {codes[bad]}; the others were stopped"
                return int(codes[bad] or 1)
            if None not in codes:
                return 0
            if asked.count(signal.SIGINT) >= 2:
                return 130
            if asked and stop_file.parent.is_dir():
                stop_file.write_text(signal.Signals(asked[0]).name)
            time.sleep(POLL_SECONDS)
    finally:
        _end(children)
        if ended:  # last: what the others say on their way out is not the cause
            failure = read_failure(folder) if folder.attempt() > number else None
            print(ended if failure is None else f"{ended}: {failure}", file=sys.stderr, flush=True)
        for number, handler in previous.items():
            signal.signal(number, handler)
        if asked:
            stop_file.unlink(missing_ok=True)


def _end(children: "Sequence[subprocess.Popen[bytes]]") -> None:
    """SIGTERM, then SIGKILL: when ssh ends, the remote command loses its terminal and gets SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, number)
        deadline = time.monotonic() + GRACE_S
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
