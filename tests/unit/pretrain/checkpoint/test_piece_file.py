"""Our writer of safetensors against the library's reader, and what it says of a disk that is full."""

import errno
import hashlib
import json
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as library_save
from torch import Tensor

from pretrain.checkpoint import piece_file
from pretrain.checkpoint.layout import FileEntry
from pretrain.checkpoint.piece_file import write_pieces


def pieces(sizes: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = (f"fp32/{number * 7}/blocks.{number}.wéight" for number in range(len(sizes)))
    return {name: torch.randn(size, generator=generator) for name, size in zip(names, sizes, strict=True)}


def read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check(path: Path, tensors: dict[str, Tensor]) -> None:
    entry = write_pieces(path, tensors)
    data = path.read_bytes()
    assert entry == FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())
    found = read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == torch.float32 and found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 300), max_size=30), st.integers(1, 700))
def test_the_library_reads_what_was_written_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], chunk_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(piece_file, "CHUNK_BYTES", chunk_bytes)
        check(tmp_path_factory.mktemp("pieces") / "rank-00000.safetensors", pieces(sizes))


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [0, 5, 0], [1] * 3_000])
def test_empty_tensors_and_many_pieces(tmp_path: Path, sizes: list[int]) -> None:
    check(tmp_path / "rank-00000.safetensors", pieces(sizes))


def test_every_bit_pattern_survives(tmp_path: Path) -> None:
    """NaN with a payload, infinities, subnormal numbers, and minus zero."""
    bits = [0x7FC0_0001, 0xFFC1_2345, 0x7F80_0000, 0xFF80_0000, 0x0000_0001, 0x8000_0000]
    tensor = torch.frombuffer(bytearray(struct.pack("<6I", *bits)), dtype=torch.float32)
    check(tmp_path / "odd.safetensors", {"odd": tensor})


def test_views_into_one_buffer_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(1_000, dtype=torch.float32)
    check(tmp_path / "views.safetensors", {"a": whole[10:500], "b": whole[499:1_000], "c": whole[3:3]})


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    """For one piece, where there is no order of tensors to differ in."""
    tensors = {"fp32/0/weight": torch.randn(100)}
    write_pieces(tmp_path / "ours", tensors)
    ours, theirs = (tmp_path / "ours").read_bytes(), library_save(tensors)
    header, position = [], []
    for data in (ours, theirs):
        size = int.from_bytes(data[:8], "little")
        header.append(json.loads(data[8 : 8 + size]))
        position.append(8 + size)
    assert header[0] == header[1] and position[0] % 8 == 0
    assert ours[position[0] :] == theirs[position[1] :]


def test_all_of_it_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    entry = write_pieces(tmp_path / "file", pieces([5]))
    assert flushed == [entry.bytes]


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2), torch.zeros(8)[::2]], ids=["f64", "2-d", "gaps"]
)
def test_what_is_not_flat_fp32_is_a_defect(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(AssertionError):
        write_pieces(tmp_path / "file", {"fine": torch.zeros(2), "bad": tensor})


@pytest.mark.parametrize("size", [10, 20_000, 5_000_000])
def test_a_disk_that_is_full_is_an_os_error(size: int) -> None:
    with pytest.raises(OSError) as caught:
        write_pieces(Path("/dev/full"), pieces([size]))
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_on_the_way_is_an_os_error(tmp_path: Path) -> None:
    """A limit of the file's size stands in for it: the second half of a piece does not fit."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, unlimited[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_pieces(tmp_path / "file", pieces([5 << 20]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert caught.value.errno == errno.EFBIG
