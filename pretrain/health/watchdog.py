"""Watchdog: ends a process that hangs, and reports which rank is at fault. Needs no launcher: each process watches itself.

    main thread   calls at(phase, step) at points that every rank reaches: only this counts as progress
    beat thread   writes this process's state to RUN/heartbeats                    heartbeat.py
    watch thread  after guard.watchdog_s without progress: dumps stacks to RUN/logs, reads all heartbeats twice, prints a
                  verdict to stderr and exits with 75, so that the launcher ends the others and restarts the run

A stopped process cannot end itself: the others report it, and exit. A process that holds the GIL in C code cannot run these
threads, and looks stopped to the others. Standard library only, so that it watches imports too.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

from pretrain.distributed.world import World
from pretrain.health.heartbeat import Heartbeat, Heartbeats, beat_file, describe, find_suspects, read_beats, write_beat
from pretrain.health.stacks import collectives_begun, last_collectives, main_thread_location
from pretrain.run_folder import RunFolder

STALLED = 75  # EX_TEMPFAIL of sysexits.h: retry
SLOW_PHASES = frozenset({"start", "load", "save"})  # rare, and wait for storage
SLOW_LIMIT_S = 1800.0
LONGEST_FACTOR = 3
READING_S = 60.0  # limit of reading all heartbeats twice
SHOWN_COLLECTIVES = 20


class CurrentPhase(NamedTuple):
    """Last position reported by the main thread."""

    progress: int
    phase: str
    step: int
    since: float  # wall clock, for display only


class StallTimer:
    """Idle time and its limit. Pure arithmetic: the caller passes the elapsed time of each tick.

    A phase may last `limit_s`, or three times its longest duration so far: a run whose steps exceed the limit is slow, not
    stuck. A phase never finished before (imports, a first step that compiles, a first evaluation) and a phase that waits for
    storage may last twice the limit, and at least half an hour.

    A long tick counts as two ticks at most: the process itself, or its machine, was suspended.
    """

    def __init__(self, limit_s: float, tick_s: float) -> None:
        self.limit_s, self.tick_s = limit_s, tick_s
        self.idle_s = 0.0
        self.finished: set[str] = set()  # phases
        self._now = CurrentPhase(0, "start", 0, 0.0)
        self._longest: dict[str, float] = {}

    def tick(self, now: CurrentPhase, elapsed_s: float) -> bool:
        """Add the elapsed time; return whether the limit is exceeded."""
        self.idle_s += min(elapsed_s, 2 * self.tick_s)
        if now.progress != self._now.progress:
            self._longest[self._now.phase] = max(self.idle_s, self._longest.get(self._now.phase, 0.0))
            self._now, self.idle_s = now, 0.0
        return self.idle_s > self.allowed_s()

    def allowed_s(self) -> float:
        """Limit of the current phase, in seconds."""
        phase = self._now.phase
        allowed = max(self.limit_s, LONGEST_FACTOR * self._longest.get(phase, 0.0))
        if phase in SLOW_PHASES or phase not in self.finished:
            return max(allowed, 2 * self.limit_s, SLOW_LIMIT_S)
        return allowed


class Watchdog:
    """Watchdog of this process, active inside its `with` block. A limit of 0 disables it."""

    def __init__(self, limit_s: float, folder: RunFolder, world: World) -> None:
        self.limit_s, self.folder, self.world = limit_s, folder, world
        self.attempt = 0  # set once the run has been claimed
        # About 100 heartbeat files per second over all ranks at most, to spare the shared file system.
        self.tick_s = min(limit_s / 10, max(5.0, world.size / 100))
        # Between the two reads: enough for a beat on a busy machine to become visible on a network file system.
        self.recheck_s = max(2.0, 3 * self.tick_s, min(limit_s / 10, 60.0))
        self._now = CurrentPhase(0, "start", 0, time.time())
        self._timer = StallTimer(limit_s, self.tick_s)
        self._beats, self._ended = 0, False
        self._problem: OSError | None = None
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._beat, "heartbeat"), (self._watch, "watchdog"))
        ]

    def at(self, phase: str, step: int) -> None:
        """Report progress, at a point that every rank reaches. Cheap enough for each micro-batch."""
        self._timer.finished.add(self._now.phase)
        self._now = CurrentPhase(self._now.progress + 1, phase, step, time.time())

    @property
    def step(self) -> int:
        """Step that the main thread reported last."""
        return self._now.step

    def __enter__(self) -> "Watchdog":
        if self.limit_s:
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if not self.limit_s:
            return
        if kind is None:
            self.at("end", self._now.step)
        self._closing.set()
        for thread in self._threads:
            # Wait for a verdict in progress: it explains the failure better than this error does.
            thread.join(self.recheck_s + 2 * READING_S)
        if not self._threads[0].is_alive():
            beat_file(self._heartbeats, self.world.rank).unlink(missing_ok=True)

    @property
    def _heartbeats(self) -> Path:
        return self.folder.heartbeats

    def _beat(self) -> None:
        self._write()
        while not self._closing.wait(self.tick_s):
            self._write()

    def _watch(self) -> None:
        ticked = time.monotonic()
        while not self._closing.wait(self.tick_s):
            now = time.monotonic()
            if self._timer.tick(self._now, now - ticked):
                self._alarm()
                now = time.monotonic()
            ticked = now

    def _alarm(self) -> None:
        """End the process, unless it makes progress again during the diagnosis."""
        stuck = self._now
        reporting = threading.Thread(target=self._report, args=(stuck,), name="watchdog report", daemon=True)
        reporting.start()
        reporting.join(self.recheck_s + READING_S)  # with a timeout: the storage itself may hang
        if self._now == stuck:
            os._exit(STALLED)

    def _report(self, stuck: CurrentPhase) -> None:
        name = f"watchdog: rank {self.world.rank} (process {os.getpid()} on {socket.gethostname()})"
        print_error(
            f"{name} has made no progress for {self._timer.idle_s:.0f} s in phase {stuck.phase!r} of step {stuck.step}, "
            f"{main_thread_location().text}"
        )
        with self._open_log() as log:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {name}", file=log, flush=True)
            faulthandler.dump_traceback(log, all_threads=True)
            before = read_beats(self._heartbeats, self.world.size)
            time.sleep(self.recheck_s)
            now = read_beats(self._heartbeats, self.world.size)
            if self._now != stuck:
                print_error(f"{name} makes progress again")
                return
            for line in self._verdict(before, now):
                print_error(f"  {line}")
                print(line, file=log, flush=True)
            print_error(
                f"  stacks are in {log.name}; exiting with {STALLED}; the same command resumes from the newest "
                f"checkpoint"
            )
            print("last collectives:", *last_collectives(SHOWN_COLLECTIVES), sep="\n", file=log, flush=True)
        self._ended = True
        self._write()

    def _verdict(self, before: Heartbeats, now: Heartbeats) -> Iterator[str]:
        yield from describe(find_suspects(before, now, self.attempt), now)
        if self._problem is not None:
            yield f"heartbeats cannot be written here: {self._problem}"

    def _open_log(self) -> AbstractContextManager[IO[str]]:
        try:
            self.folder.logs.mkdir(parents=True, exist_ok=True)
            return (self.folder.logs / f"watchdog-rank-{self.world.rank:05d}.txt").open("a")
        except OSError:
            return nullcontext(sys.stderr)

    def _write(self) -> None:
        """Write a heartbeat. Never raises: a temporarily full disk must not end the thread."""
        with self._writing:
            self._beats += 1
            try:
                write_beat(self._heartbeats, self._describe())
                self._problem = None
            except OSError as error:
                self._problem = error

    def _describe(self) -> Heartbeat:
        now, idle_s = self._now, self._timer.idle_s
        place, begun = None, None
        if idle_s > self.limit_s / 3:
            place, begun = main_thread_location(), collectives_begun()
        return Heartbeat(
            rank=self.world.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=self.attempt,
            beats=self._beats,
            progress=now.progress,
            phase=now.phase,
            step=now.step,
            since=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.since)),
            idle_s=round(idle_s, 1),
            place=None if place is None else place.text,
            in_collective=place is not None and place.in_collective,
            collectives=begun,
            ended=self._ended,
        )


def print_error(text: str) -> None:
    """Print to stderr and flush: the process is about to end."""
    print(text, file=sys.stderr, flush=True)
