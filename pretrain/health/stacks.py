"""Position of a process: the line its main thread executes, and the collectives it has begun.

torch's flight recorder keeps the last collectives of a process (2,000, or TORCH_FR_BUFFER_SIZE): gloo on CPU, NCCL on CUDA.
It numbers them, so of two processes that wait for each other, the one that has begun fewer is behind. Standard library
only, so that it also works while torch is still being imported.
"""

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

# Frames between a collective and the code that called it.
WRAPPERS = ("torch.distributed", "deepspeed.comm", "deepspeed.utils", "torch.utils._contextlib")


class StackLocation(NamedTuple):
    """Position in the source as text, and whether it is inside a collective."""

    text: str
    in_collective: bool


def main_thread_location() -> StackLocation:
    """Current position of this process's main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return StackLocation("the main thread has ended", False) if frame is None else location_of(frame)


def location_of(frame: FrameType) -> StackLocation:
    """Innermost function; inside a collective, the collective and its first caller outside torch.distributed."""
    caller: FrameType | None = frame
    while caller is not None and _is_wrapper(caller):
        caller = caller.f_back
    if caller is None or caller is frame:
        return StackLocation(f"in {_describe(frame)}{_our_caller(frame)}", False)
    collective = f"torch.distributed.{frame.f_code.co_name}"
    return StackLocation(f"in {collective}, called from {_describe(caller)}{_our_caller(caller)}", True)


def collectives_begun() -> int | None:
    """Number of collectives begun, over all groups; None if torch does not record them."""
    groups = _recorded(entries=False).get("pg_status", {})
    return sum(int(group["last_enqueued_collective"]) for group in groups.values()) if groups else None


def last_collectives(count: int) -> list[str]:
    """The last `count` collectives, one line each, newest last; unfinished ones are marked."""
    lines = []
    for entry in _recorded(entries=True).get("entries", [])[-count:]:
        sizes = ", ".join("×".join(map(str, size)) or "scalar" for size in entry["input_sizes"])
        state = "" if entry["retired"] else f"  not ended ({entry['state']})"
        group = entry["process_group"][0]
        lines.append(f"{entry['collective_seq_id']:>8} of group {group}  {entry['profiling_name']}  {sizes}{state}")
    return lines


def _recorded(*, entries: bool) -> dict[str, Any]:
    """Contents of the flight recorder; empty if there is none."""
    module = sys.modules.get("torch._C._distributed_c10d")
    # Private names of torch: 2.13 has both, a CPU build only the second.
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump = getattr(module, name, None)
        if dump is None:
            continue
        try:
            found: dict[str, Any] = json.loads(dump(includeCollectives=entries))
        except (RuntimeError, TypeError, ValueError):
            continue
        if found.get("pg_status"):
            return found
    return {}


def _is_wrapper(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return any(name == wrapper or name.startswith(f"{wrapper}.") for wrapper in WRAPPERS)


def _describe(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{frame.f_code.co_name} ({'/'.join(path.parts[-2:])}:{frame.f_lineno})"


def _our_caller(frame: FrameType) -> str:
    """Innermost caller of this package, unless `frame` is of this package itself."""
    caller: FrameType | None = frame
    while caller is not None and not caller.f_globals.get("__name__", "").startswith("pretrain."):
        caller = caller.f_back
    return "" if caller is None or caller is frame else f", from {_describe(caller)}"
