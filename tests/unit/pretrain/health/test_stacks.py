import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

import pytest
import torch
import torch.distributed as dist

from pretrain.data.loader import prefetch
from pretrain.health.stacks import collectives_begun, last_collectives, location_of, main_thread_location


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> object:
    """A gloo group of this process alone."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def frame_while(action: Callable[[], object]) -> FrameType:
    """The frame of a thread that runs `action`, half a second later."""
    return frame_of(started(action))


def started(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def frame_of(thread: threading.Thread) -> FrameType:
    time.sleep(0.5)
    return sys._current_frames()[thread.ident or 0]


def test_outside_a_collective_the_innermost_function_is_named() -> None:
    waiting: queue.Queue = queue.Queue()
    place = location_of(frame_while(waiting.get))
    assert place.text.startswith("in wait (python3") or "in wait (" in place.text
    assert not place.in_collective


def test_our_own_function_that_led_there_is_named_too() -> None:
    blocked = threading.Event()

    def items() -> object:
        blocked.wait()
        yield from ()

    place = location_of(frame_while(lambda: next(prefetch(1)(items()))))
    assert "in wait (" in place.text and ", from ahead (data/loader.py:" in place.text


def test_inside_a_collective_it_is_named_with_its_caller() -> None:
    store = dist.HashStore()

    def wait_for_the_other() -> None:
        dist.distributed_c10d._store_based_barrier(0, store, "both", 2, timedelta(seconds=60))

    thread = started(wait_for_the_other)
    place = location_of(frame_of(thread))
    assert (
        "in torch.distributed._store_based_barrier, called from wait_for_the_other (health/test_stacks.py:"
        in place.text
    )
    assert place.in_collective
    # A thread that still waits in the store when the process ends would abort it.
    dist.distributed_c10d._store_based_barrier(1, store, "both", 2, timedelta(seconds=60))
    thread.join(30)
    assert not thread.is_alive()


def test_the_main_thread_is_described_from_another() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(main_thread_location()))
    thread.start()
    thread.join()
    assert "in " in found[0].text and not found[0].in_collective


def test_collectives_are_counted_and_listed(group: object) -> None:
    dist.barrier()
    before = collectives_begun()
    assert before is not None
    dist.all_reduce(torch.ones(7, 2))
    dist.broadcast(torch.ones(3), 0)
    assert collectives_begun() == before + 2
    first, second = last_collectives(2)
    assert "all_reduce  7×2" in first and "broadcast  3" in second


def test_without_a_group_there_is_nothing_to_count() -> None:
    code = "from pretrain.health.stacks import *; assert collectives_begun() is None and last_collectives(3) == []"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
