"""Ends a process that hangs, and says which one is at fault. It needs no launcher: every process watches itself.

    main thread   at(phase, step) wherever the same is reached on every rank: this alone is progress
    beat thread   writes where this process stands to RUN/heartbeats               heartbeat.py
    watch thread  after guard.watchdog_s without progress: stacks to RUN/logs, two looks at all heartbeats, a verdict on
                  stderr, then exit code 75, so that the launcher ends the others and starts the run again

A stopped process cannot end itself: the others name it, and end. A process that holds the interpreter's lock in C code
cannot run these threads; to the others it looks stopped. Standard library only, so that it watches imports too.
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
from pretrain.health.heartbeat import Beats, Heartbeat, beat_file, describe, find_suspects, read_beats, write_beat
from pretrain.health.stacks import collectives_begun, last_collectives, main_thread_place
from pretrain.run_folder import RunFolder

STALLED = 75  # EX_TEMPFAIL of sysexits.h: try again
SLOW_PHASES = frozenset({"start", "load", "save"})  # wait for storage, and happen rarely
SLOW_LIMIT_S = 1800.0
LONGEST_FACTOR = 3
READING_S = 60.0  # for all heartbeats, twice
SHOWN_COLLECTIVES = 20


class Now(NamedTuple):
    """Where the main thread says that it is."""

    progress: int
    phase: str
    step: int
    since: float  # wall clock, for people


class Patience:
    """How long is too long. Pure accounting, told at every tick how much time has passed.

    A phase may last `limit_s`, or three times its longest so far: a run whose steps are longer than the limit is slow and
    not stuck. What was never finished before (imports, the first step with its compiling, a first evaluation), and what
    waits for storage, may last twice the limit, and half an hour at least.

    Of a tick that took long, only two ticks' worth counts: then this process itself was stopped, or its machine.
    """

    def __init__(self, limit_s: float, tick_s: float) -> None:
        self.limit_s, self.tick_s = limit_s, tick_s
        self.idle_s = 0.0
        self.finished: set[str] = set()  # phases
        self._now = Now(0, "start", 0, 0.0)
        self._longest: dict[str, float] = {}

    def tick(self, now: Now, elapsed_s: float) -> bool:
        """Whether it has been too long."""
        self.idle_s += min(elapsed_s, 2 * self.tick_s)
        if now.progress != self._now.progress:
            self._longest[self._now.phase] = max(self.idle_s, self._longest.get(self._now.phase, 0.0))
            self._now, self.idle_s = now, 0.0
        return self.idle_s > self.allowed_s()

    def allowed_s(self) -> float:
        """What the phase that is going on may last."""
        phase = self._now.phase
        allowed = max(self.limit_s, LONGEST_FACTOR * self._longest.get(phase, 0.0))
        if phase in SLOW_PHASES or phase not in self.finished:
            return max(allowed, 2 * self.limit_s, SLOW_LIMIT_S)
        return allowed


class Watchdog:
    """One process's. With a limit of 0 it only takes notes. As a context manager it ends with the block."""

    def __init__(self, limit_s: float, folder: RunFolder, world: World) -> None:
        self.limit_s, self.folder, self.world = limit_s, folder, world
        self.attempt = 0  # set once the run has been claimed
        # At most about a hundred files a second over all ranks, which a shared file system can bear.
        self.tick_s = min(limit_s / 10, max(5.0, world.size / 100))
        # Between the two looks: long enough for a beat on a busy machine, and for a network file system to show it.
        self.look_s = max(2.0, 3 * self.tick_s, min(limit_s / 10, 60.0))
        self._now = Now(0, "start", 0, time.time())
        self._patience = Patience(limit_s, self.tick_s)
        self._beats, self._ended = 0, False
        self._problem: OSError | None = None
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._beat, "heartbeat"), (self._watch, "watchdog"))
        ]

    def at(self, phase: str, step: int) -> None:
        """The main thread has come here, and so will that of every other rank: cheap enough for each micro-batch."""
        self._patience.finished.add(self._now.phase)
        self._now = Now(self._now.progress + 1, phase, step, time.time())

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
            # Where a verdict is being made, it is why this process fails, and worth more than the error: wait for it.
            thread.join(self.look_s + 2 * READING_S)
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
            if self._patience.tick(self._now, now - ticked):
                self._alarm()
                now = time.monotonic()
            ticked = now

    def _alarm(self) -> None:
        """End the process, unless it moves again while the others are looked at."""
        stuck = self._now
        reporting = threading.Thread(target=self._report, args=(stuck,), name="watchdog report", daemon=True)
        reporting.start()
        reporting.join(self.look_s + READING_S)  # no longer: the storage may be what hangs
        if self._now == stuck:
            os._exit(STALLED)

    def _report(self, stuck: Now) -> None:
        name = f"watchdog: rank {self.world.rank} (process {os.getpid()} on {socket.gethostname()})"
        print_error(
            f"{name} has made no progress for {self._patience.idle_s:.0f} s in phase {stuck.phase!r} of step {stuck.step}, "
            f"{main_thread_place().text}"
        )
        with self._open_log() as log:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {name}", file=log, flush=True)
            faulthandler.dump_traceback(log, all_threads=True)
            before = read_beats(self._heartbeats, self.world.size)
            time.sleep(self.look_s)
            now = read_beats(self._heartbeats, self.world.size)
            if self._now != stuck:
                print_error(f"{name} goes on")
                return
            for line in self._verdict(before, now):
                print_error(f"  {line}")
                print(line, file=log, flush=True)
            print_error(
                f"  stacks are in {log.name}; ending with exit code {STALLED}, and the same command goes on from the newest "
                f"checkpoint"
            )
            print("last collectives:", *last_collectives(SHOWN_COLLECTIVES), sep="\n", file=log, flush=True)
        self._ended = True
        self._write()

    def _verdict(self, before: Beats, now: Beats) -> Iterator[str]:
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
        """Never raises: a disk that is full for a minute must not stop the beats."""
        with self._writing:
            self._beats += 1
            try:
                write_beat(self._heartbeats, self._describe())
                self._problem = None
            except OSError as error:
                self._problem = error

    def _describe(self) -> Heartbeat:
        now, idle_s = self._now, self._patience.idle_s
        place, begun = None, None
        if idle_s > self.limit_s / 3:
            place, begun = main_thread_place(), collectives_begun()
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
    """To stderr, at once: the process is about to end."""
    print(text, file=sys.stderr, flush=True)
