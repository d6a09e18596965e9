"""Rules of a cluster file: between values, and against values that would inject lines into a batch script.

sbatch interprets quotes and backslashes in `#SBATCH` lines, so values there must not contain any. Elsewhere in the script
values are quoted for bash, and only control characters are rejected. `setup` and `extra` are the user's own lines.
"""

import re
from collections.abc import Iterator

from launch.slurm.cluster import Cluster

DIRECTIVES = (
    "account partition qos constraint reservation nodelist exclude gres hint mem job_name comment mail_user mail_type log"
).split()
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"'`\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WORDS = re.compile(r"[\w.@:%+,=/&|!*()\[\]-]+")  # characters of SLURM names; spaces only in comment and job_name
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?|(\d+):(\d+):(\d+))")
_MEMORY = re.compile(r"\d+[KMGT]?")
_NAME = re.compile(r"[A-Za-z_]\w*")
_RESERVED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def find_problems(cluster: Cluster) -> list[str]:
    """All broken rules."""
    return [problem for part in (_directives, _sizes, _lines, _environment, _container) for problem in part(cluster)]


def parse_time(text: str) -> int | None:
    """Seconds of a time limit; None if malformed.

    Rejects "90" and "2:00": SLURM reads them as 90 and 2 minutes, which few users expect.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    if match["days"] is not None:
        days, hours, minutes, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    else:
        days, hours, minutes, seconds = 0, *(int(match[number]) for number in (5, 6, 7))
    if minutes > 59 or seconds > 59 or (match["days"] is not None and hours > 23):
        return None
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def quote_directive(value: str) -> str:
    """Double-quote a value of a `#SBATCH` line if sbatch would otherwise cut it (spaces, `#`)."""
    return value if _WORDS.fullmatch(value) else f'"{value}"'


def unsafe_path(path: str) -> bool:
    """Whether sbatch would misread a path in a `#SBATCH` line; `%` starts a file name pattern."""
    return bool(_UNSAFE.search(path)) or "%" in path


def _directives(cluster: Cluster) -> Iterator[str]:
    for key in DIRECTIVES:
        value = getattr(cluster, key)
        if value is None:
            continue
        if not value or value != value.strip() or _UNSAFE.search(value):
            yield (
                f"{key}={value!r} is not allowed in a #SBATCH line\n"
                f"    hint: no quotes, backslashes, newlines or surrounding spaces, and not empty"
            )
        elif key not in ("comment", "job_name") and not _WORDS.fullmatch(value):
            yield f"{key}={value!r} has characters that SLURM names cannot have"
    seconds = parse_time(cluster.time)
    if not seconds:
        yield (
            f"time={cluster.time!r} is not a time limit\n"
            f'    hint: "HOURS:MINUTES:SECONDS" or "DAYS-HOURS:MINUTES:SECONDS", e.g. "24:00:00"'
        )
    elif seconds <= cluster.signal_lead_s:
        yield f"signal_lead_s={cluster.signal_lead_s} is not below time={cluster.time}: the job would only save"
    if cluster.mem is not None and not _MEMORY.fullmatch(cluster.mem):
        yield f'mem={cluster.mem!r} is not a size\n    hint: e.g. "900G", or "0" for all of the node'
    if "/" in cluster.log:
        yield f"log={cluster.log!r} is not a plain file name\n    hint: %x-%j.log; the folder is always RUN/logs"
    if (cluster.mail_type is None) != (cluster.mail_user is None):
        yield "mail_user and mail_type must be set together\n    hint: mail_user: NAME@HOST, mail_type: FAIL,REQUEUE"


def _sizes(cluster: Cluster) -> Iterator[str]:
    if cluster.gres is not None:
        count = re.search(r"gpu(?::[\w.-]+)?:(\d+)\b", cluster.gres)
        if cluster.gpus_per_node and (count is None or int(count[1]) != cluster.gpus_per_node):
            yield (
                f"gres={cluster.gres} does not match gpus_per_node={cluster.gpus_per_node}\n"
                f"    hint: gres: gpu:{cluster.gpus_per_node}"
            )
        elif count is not None and not cluster.gpus_per_node:
            yield f"gres={cluster.gres} with gpus_per_node=0\n    hint: gpus_per_node: {count[1]}"
    if cluster.gpus_per_node and cluster.processes_per_node > cluster.gpus_per_node:
        yield (
            f"tasks_per_node={cluster.tasks_per_node} is above gpus_per_node={cluster.gpus_per_node}: processes would "
            f"share GPUs\n    hint: tasks_per_node: 0"
        )


def _lines(cluster: Cluster) -> Iterator[str]:
    for line in cluster.extra:
        if not re.fullmatch(r"-[-\w][^\x00-\x1f\x7f]*", line):
            yield f"extra: {line!r} is not a single sbatch option\n    hint: e.g. --switches=1, without #SBATCH"
    for key, texts in (("srun", cluster.srun), ("container.arguments", cluster.container.arguments)):
        for text in texts:
            if not text.startswith("-") or _CONTROL.search(text):
                yield f"{key}: {text!r} is not an option\n    hint: one option per list item, e.g. --mpi=none"
    for key in ("network_interface", "python"):
        value = getattr(cluster, key)
        if value is not None and (not value or _CONTROL.search(value)):
            yield f"{key}={value!r} is empty or contains a newline"


def _environment(cluster: Cluster) -> Iterator[str]:
    for name, value in cluster.environment.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"environment: {name!r} is not a valid variable name"
        elif name in _RESERVED:
            yield f"environment.{name} is set by the job and cannot be overridden"
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            yield f"environment.{name}={value!r} is not a string or number\n    hint: quote it"
        elif isinstance(value, str) and "\x00" in value:
            yield f"environment.{name} contains a NUL byte"


def _container(cluster: Cluster) -> Iterator[str]:
    container = cluster.container
    if container.kind == "none":
        if container.image is not None or container.mounts or container.arguments:
            yield "container.image, mounts, arguments have no effect with container.kind=none\n    hint: container.kind: pyxis"
        return
    if not container.image or _CONTROL.search(container.image):
        yield f"container.image={container.image!r} is not an image\n    hint: container.image: /images/pretrain.sif"
    for mount in container.mounts:
        if not re.fullmatch(r"[^\x00-\x1f\x7f:,]+:/[^\x00-\x1f\x7f:,]*(:[a-z,]+)?", mount):
            yield f"container.mounts: {mount!r} is not HOST:CONTAINER[:ro]"
