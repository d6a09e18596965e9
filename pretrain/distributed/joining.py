"""Waiting for other ranks: notes whom for and how long, and an end on signals although the call waits in C++."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.distributed.process_exit import leave
from pretrain.distributed.world import World

FIRST_NOTE_S = 15
NOTE_EVERY_S = 60
ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def announced_wait(world: World, timeout_minutes: float) -> Iterator[None]:
    """Print notes while the block waits for the other ranks, and exit with 128 + N on the signals in `ENDING`.

    A call that waits in C++ keeps Python's own signal handlers from running. Must be entered by the main thread.
    """
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = "the others" if world.is_main else "rank 0"
    line = f"rank {world.rank} of {world.size} waits for {others} at {address}, at most {timeout_minutes:.0f} minutes"
    arrived, reader = socket.socketpair()
    for end in (arrived, reader):
        end.setblocking(False)
    before = signal.set_wakeup_fd(arrived.fileno(), warn_on_full_buffer=False)
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(reader, done, line), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.set_wakeup_fd(before)
        arrived.close()
        reader.close()


def _watch(reader: socket.socket, done: threading.Event, line: str) -> None:
    note_at = time.monotonic() + FIRST_NOTE_S
    while not done.wait(0.2):
        for number in _received(reader):
            if number in ENDING:
                print(
                    f"error: {signal.Signals(number).name} while {line.replace(' waits', ' waited')}", file=sys.stderr
                )
                leave(128 + number)
        if time.monotonic() >= note_at:
            print(line, file=sys.stderr, flush=True)
            note_at = time.monotonic() + NOTE_EVERY_S


def _received(reader: socket.socket) -> bytes:
    try:
        return reader.recv(64)
    except BlockingIOError:
        return b""
