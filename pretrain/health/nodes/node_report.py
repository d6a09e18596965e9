"""What one node says of itself before a training: versions, devices, memory, disks. Standard library only.

A report is a line of JSON to the head node; what is wrong with a node shows by comparison (node_check.py), but for a few
things that a node knows alone.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pretrain
from pretrain.errors import PretrainError
from pretrain.storage.files import write_synced

PACKAGES = ("torch", "deepspeed")
# Free, since a left-over process of someone else shows there first; errors, since a device goes on with them for a while.
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total")
USED_MIB = 2048  # by others; the driver itself keeps a few hundred
GIB = 2**30
LONGEST_REPORT = 65_536


@dataclass(frozen=True)
class Needs:
    """What a run asks of each node. Bytes."""

    memory: int = 0
    free: Mapping[str, int] = field(default_factory=dict)  # by folder
    cuda: bool = False


@dataclass(frozen=True)
class Report:
    """One node. Sizes in bytes; `clock` is its wall clock when it was sent, in seconds."""

    node: str
    versions: dict[str, str]
    devices: list[str]
    memory: int
    problems: list[str]
    token: str | None = None  # read from the run folder
    clock: float = 0.0

    def to_line(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Report":
        """As it was sent. Raises PretrainError for anything else: whoever reaches the port can write to it."""
        try:
            report = cls(**json.loads(line))
            texts = [report.node, *report.versions, *report.versions.values(), *report.devices, *report.problems]
            assert all(isinstance(text, str) for text in (*texts, report.token or ""))
            return cls(**{**asdict(report), "memory": int(report.memory), "clock": float(report.clock)})
        except (ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise PretrainError(f"not a report of a node: {line[:80]!r}") from error


def look(needs: Needs, node: str) -> Report:
    """This node's report. Takes a second, most of it nvidia-smi."""
    problems: list[str] = []
    devices = _devices(problems)
    if needs.cuda and not devices:
        problems.append("engine.device=cuda, and nvidia-smi shows no device")
    total, available = _memory()
    if available < needs.memory:
        problems.append(
            f"{available / GIB:.1f} of {total / GIB:.1f} GiB of memory are available, and {needs.memory / GIB:.1f} are needed"
        )
    for folder, wanted in needs.free.items():
        problems += _disk(Path(folder), wanted)
    return Report(node, versions(), devices, total, problems)


def versions() -> dict[str, str]:
    """Of what must be the same on every node. Our own is a digest of the sources: copies of a clone have equal numbers."""
    found = {"Python": platform.python_version(), "pretrain": f"{pretrain.__version__}, sources {_digest()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _digest() -> str:
    folder = Path(pretrain.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:10]


def _devices(problems: list[str]) -> list[str]:
    """Names of the NVIDIA devices; others are not known here."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return []
    command = [*NVIDIA_SMI, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        problems.append("nvidia-smi does not answer within 60 s: its driver hangs")
        return []
    if done.returncode:
        problems.append(f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()[:200]}")
        return []
    return [name for number, row in enumerate(done.stdout.splitlines()) for name in _device(number, row, problems)]


def _device(number: int, row: str, problems: list[str]) -> Sequence[str]:
    """Its name, from a row of `nvidia-smi`; none of a row that cannot be read, which is a problem."""
    values = [value.strip() for value in row.split(",")]
    if len(values) != 4 or not values[1].isdecimal():
        problems.append(f"device {number}: nvidia-smi says {row[:100]!r}")
        return []
    name, total, used, errors = values
    if used.isdecimal() and int(used) > USED_MIB:
        problems.append(f"device {number}: {used} of {total} MiB are in use by another process")
    if errors.isdecimal() and int(errors) > 0:  # "[N/A]" where there is no ECC
        problems.append(f"device {number}: {errors} uncorrected memory errors since the driver was loaded")
    return [f"{name}, {total} MiB"]


def _memory() -> tuple[int, int]:
    """(total, available), of the node."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        values[name] = 1024 * int(amount.split()[0])
    return values["MemTotal"], values["MemAvailable"]


def _disk(folder: Path, wanted: int) -> list[str]:
    """What keeps a run from writing so many bytes to a folder: it is made where it is missing, and a file is written."""
    probe = folder / f".probe-{platform.node()}-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_synced(probe, b"probe")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"{folder} cannot be written: {error.strerror}"]
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return [] if free >= wanted else [f"{folder} has {free / GIB:.1f} GiB free, and {wanted / GIB:.1f} are needed"]
