"""Heartbeat files, which each rank replaces every few seconds, and the diagnosis of a hang from all of them.

    RUN/heartbeats/rank-00000.json      removed on a clean exit

A process lives if its count of beats rises between two reads; file ages are useless, since the clocks of machines differ.
`progress` counts the same calls in the same order on every rank, so the lowest is behind; unlike the step, it never goes
back in a rollback. Standard library only.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.storage.files import publish_file

SHOWN = 8  # suspects described one by one


@dataclass(frozen=True)
class Heartbeat:
    """State of one process. `place`, `in_collective` and `collectives` are filled in once it has been idle for a while."""

    rank: int
    host: str
    pid: int
    attempt: int  # 0 until the run has been claimed
    beats: int
    progress: int
    phase: str
    step: int
    since: str  # local time of the last progress
    idle_s: float
    place: str | None = None
    in_collective: bool = False
    collectives: int | None = None  # begun by this process
    ended: bool = False  # by its own watchdog

    @property
    def label(self) -> str:
        """Rank, PID and host, for messages."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def position(self) -> str:
        """Phase, and the source line if known."""
        return f"in phase {self.phase!r} of step {self.step}" + (f", {self.place}" if self.place else "")


Heartbeats = Mapping[int, Heartbeat | None]  # by rank; None: no readable file


class Suspect(NamedTuple):
    """A rank that the others wait for, with the evidence."""

    rank: int
    reason: str


def write_beat(folder: Path, beat: Heartbeat) -> None:
    """Atomically replace this rank's file, without fsync: it is useless after a power failure. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    publish_file(beat_file(folder, beat.rank), json.dumps(asdict(beat)) + "\n", durable=False)


def read_beats(folder: Path, size: int) -> dict[int, Heartbeat | None]:
    """Heartbeats of ranks 0 … size - 1."""
    return {rank: _read(beat_file(folder, rank)) for rank in range(size)}


def beat_file(folder: Path, rank: int) -> Path:
    """Heartbeat file of a rank."""
    return folder / f"rank-{rank:05d}.json"


def find_suspects(before: Heartbeats, now: Heartbeats, attempt: int) -> list[Suspect]:
    """Suspects of a hang, from two reads of all heartbeats: ranks that show no sign of life, else ranks that are behind.

    Empty if all live and are equally far: then no rank's own code is the cause.
    """
    living = {rank: beat for rank, beat in now.items() if beat is not None and _lives(before.get(rank), beat, attempt)}
    silent = [Suspect(rank, _silence(rank, beat, attempt)) for rank, beat in now.items() if rank not in living]
    return silent or list(_behind(living))


def describe(suspects: list[Suspect], now: Heartbeats) -> Iterator[str]:
    """Verdict as lines of text."""
    for _, reason in suspects[:SHOWN]:
        yield f"at fault: {reason}"
    if len(suspects) > SHOWN:
        more = ", ".join(str(suspect.rank) for suspect in suspects[SHOWN:])
        yield f"also at fault: ranks {more}"
    if not suspects:
        places = Counter(beat.position for beat in now.values() if beat is not None)
        yield "no process stands out: all live and are equally far; check the network, the devices and the storage"
        yield from (f"{count} × {place}" for place, count in places.most_common(SHOWN))


def _lives(before: Heartbeat | None, now: Heartbeat, attempt: int) -> bool:
    """Whether the count of beats rose. A process just ended by its own watchdog was alive: its position counts."""
    return before is None or now.beats != before.beats or (now.ended and attempt != 0 and now.attempt == attempt)


def _silence(rank: int, beat: Heartbeat | None, attempt: int) -> str:
    if beat is None:
        return f"rank {rank} has no heartbeat: it never started or has exited"
    if beat.attempt != attempt:
        return f"rank {rank} has not begun: its heartbeat is from an earlier start (process {beat.pid} on {beat.host})"
    return (
        f"{beat.label} shows no sign of life since {beat.since}, in phase {beat.phase!r} of step {beat.step}: stopped, dead, "
        f"or its machine is down"
    )


def _behind(living: Mapping[int, Heartbeat]) -> Iterator[Suspect]:
    """Lowest progress; if equal, fewest collectives begun; if equal, outside a collective while others wait in one."""
    for coming in (
        {rank: beat.progress for rank, beat in living.items()},
        {rank: beat.collectives for rank, beat in living.items() if beat.collectives is not None},
        {rank: int(beat.in_collective) for rank, beat in living.items() if beat.place is not None},
    ):
        values = list(coming.values())
        if len(values) == len(living) and len(set(values)) > 1:
            for rank, value in coming.items():
                if value == min(values):
                    yield Suspect(rank, f"{living[rank].label} is behind the others, {living[rank].position}")
            return


def _read(path: Path) -> Heartbeat | None:
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
