"""A process that waits for ranks nobody starts: it says so, and a signal ends it."""

import signal
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, time
from pretrain.distributed import joining
from pretrain.distributed.world import World
joining.FIRST_NOTE_S = 0
signal.signal(signal.SIGTERM, lambda *_: None)  # as StopRequest: notes it, and goes on
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
import torch
import torch.distributed as dist
print("waiting", flush=True)
with joining.announced_wait(World({rank}, 3), 45):
    dist.init_process_group("gloo", rank={rank}, world_size=3)
"""


@pytest.mark.parametrize(("rank", "others"), [(0, "the others"), (1, "rank 0")])
def test_a_wait_in_cpp_is_announced_and_ends_on_a_signal(rank: int, others: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = PROGRAM.format(rank=rank, port=port)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "waiting\n"
    line = f"rank {rank} of 3 waits for {others} at 127.0.0.1:{port}, at most 45 minutes"
    while line not in process.stderr.readline():  # torch warns that nobody listens
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"error: SIGTERM while rank {rank} of 3 waited for {others}" in error
