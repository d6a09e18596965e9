"""Where a process stands: in which line its main thread is, and which collectives it has begun.

torch keeps the last collectives of a process in its flight recorder (the last 2,000, or TORCH_FR_BUFFER_SIZE): on CPU for
gloo, on CUDA for NCCL. It counts them, so that of two processes that wait for each other the one that has begun fewer is
behind. Standard library only: asked of a process that still imports torch, it answers as well.
"""

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

# Between a collective and the code that wants it.
WRAPPERS = ("torch.distributed", "deepspeed.comm", "deepspeed.utils", "torch.utils._contextlib")


class StackPlace(NamedTuple):
    """The main thread's place as a person reads it, and whether that is inside a collective."""

    text: str
    in_collective: bool


def main_thread_place() -> StackPlace:
    """Where the main thread of this process is now."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return StackPlace("the main thread has ended", False) if frame is None else place_of(frame)


def place_of(frame: FrameType) -> StackPlace:
    """The innermost function; inside a collective, the collective and the first function that is not of torch.distributed."""
    caller: FrameType | None = frame
    while caller is not None and _is_wrapper(caller):
        caller = caller.f_back
    if caller is None or caller is frame:
        return StackPlace(f"in {_describe(frame)}{_our_caller(frame)}", False)
    collective = f"torch.distributed.{frame.f_code.co_name}"
    return StackPlace(f"in {collective}, called from {_describe(caller)}{_our_caller(caller)}", True)


def collectives_begun() -> int | None:
    """How many collectives this process has begun, over all groups; None where torch does not record."""
    groups = _recorded(entries=False).get("pg_status", {})
    return sum(int(group["last_enqueued_collective"]) for group in groups.values()) if groups else None


def last_collectives(count: int) -> list[str]:
    """The last collectives that were begun, a line each, the newest last; those that have not ended are marked."""
    lines = []
    for entry in _recorded(entries=True).get("entries", [])[-count:]:
        sizes = ", ".join("×".join(map(str, size)) or "scalar" for size in entry["input_sizes"])
        state = "" if entry["retired"] else f"  not ended ({entry['state']})"
        group = entry["process_group"][0]
        lines.append(f"{entry['collective_seq_id']:>8} of group {group}  {entry['profiling_name']}  {sizes}{state}")
    return lines


def _recorded(*, entries: bool) -> dict[str, Any]:
    """What the flight recorder holds; empty where there is none. Names are private to torch: 2.13 has both, a CPU build one."""
    module = sys.modules.get("torch._C._distributed_c10d")
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
    """The innermost function of this package, where `frame` is not one itself."""
    caller: FrameType | None = frame
    while caller is not None and not caller.f_globals.get("__name__", "").startswith("pretrain."):
        caller = caller.f_back
    return "" if caller is None or caller is frame else f", from {_describe(caller)}"
