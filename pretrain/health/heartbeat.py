"""What each process is doing, in a file that it replaces every few seconds; and who is at fault when nothing moves.

    RUN/heartbeats/rank-00000.json      removed by a process that ends in order

The clocks of machines differ, and so do a file's age and its truth: a process lives if its count of beats rises between
two looks. `progress` counts the same calls in the same order on every rank, so the lowest is behind; unlike the step, it
does not go back in a rollback. Standard library only.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.storage.files import publish_file

SHOWN = 8  # suspects that are described; a thousand that wait for one are not


@dataclass(frozen=True)
class Heartbeat:
    """One process at one moment. `place`, `in_collective` and `collectives` are looked up once it has stood still a while."""

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
    def who(self) -> str:
        """How a person finds it."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def where(self) -> str:
        """The phase, and the line where it is known."""
        return f"in phase {self.phase!r} of step {self.step}" + (f", {self.place}" if self.place else "")


Beats = Mapping[int, Heartbeat | None]  # by rank; None where there is no file, or none that can be read


class Suspect(NamedTuple):
    """A rank for which the others wait, and why it is believed."""

    rank: int
    reason: str


def write_beat(folder: Path, beat: Heartbeat) -> None:
    """Replace this rank's file in one go; not flushed, since it is of no use after a power cut. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    publish_file(beat_file(folder, beat.rank), json.dumps(asdict(beat)) + "\n", durable=False)


def read_beats(folder: Path, size: int) -> dict[int, Heartbeat | None]:
    """The beats of ranks 0 … size - 1."""
    return {rank: _read(beat_file(folder, rank)) for rank in range(size)}


def beat_file(folder: Path, rank: int) -> Path:
    """Where a rank writes."""
    return folder / f"rank-{rank:05d}.json"


def find_suspects(before: Beats, now: Beats, attempt: int) -> list[Suspect]:
    """Who is at fault, from two looks at a run in which nothing moves: those without a sign of life, else those behind.

    Empty where all live and have come equally far: then it is nobody's own code.
    """
    living = {rank: beat for rank, beat in now.items() if beat is not None and _lives(before.get(rank), beat, attempt)}
    silent = [Suspect(rank, _silence(rank, beat, attempt)) for rank, beat in now.items() if rank not in living]
    return silent or list(_behind(living))


def describe(suspects: list[Suspect], now: Beats) -> Iterator[str]:
    """A line each for a person."""
    for _, reason in suspects[:SHOWN]:
        yield f"at fault: {reason}"
    if len(suspects) > SHOWN:
        more = ", ".join(str(suspect.rank) for suspect in suspects[SHOWN:])
        yield f"and as much: ranks {more}"
    if not suspects:
        places = Counter(beat.where for beat in now.values() if beat is not None)
        yield "no process stands out: all live and have come equally far, so look at the network, the devices, the storage"
        yield from (f"{count} × {place}" for place, count in places.most_common(SHOWN))


def _lives(before: Heartbeat | None, now: Heartbeat, attempt: int) -> bool:
    """One that its own watchdog has just ended was alive; where it stood counts."""
    return before is None or now.beats != before.beats or (now.ended and attempt != 0 and now.attempt == attempt)


def _silence(rank: int, beat: Heartbeat | None, attempt: int) -> str:
    if beat is None:
        return f"rank {rank} has no heartbeat: it never started, or has ended"
    if beat.attempt != attempt:
        return f"rank {rank} has not begun: its heartbeat is that of an earlier start, by process {beat.pid} on {beat.host}"
    return (
        f"{beat.who} shows no sign of life since it was in phase {beat.phase!r} of step {beat.step}, {beat.since}: it is "
        f"stopped or dead, or its machine is gone"
    )


def _behind(living: Mapping[int, Heartbeat]) -> Iterator[Suspect]:
    """First by progress; among equals by collectives begun, then by who is in none while another waits in one."""
    for coming in (
        {rank: beat.progress for rank, beat in living.items()},
        {rank: beat.collectives for rank, beat in living.items() if beat.collectives is not None},
        {rank: int(beat.in_collective) for rank, beat in living.items() if beat.place is not None},
    ):
        values = list(coming.values())
        if len(values) == len(living) and len(set(values)) > 1:
            for rank, value in coming.items():
                if value == min(values):
                    yield Suspect(rank, f"{living[rank].who} is behind the others, {living[rank].where}")
            return


def _read(path: Path) -> Heartbeat | None:
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
