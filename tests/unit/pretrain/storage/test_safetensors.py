"""safetensors files against the library's own reader and writer: bits, corrupt files, full disks."""

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
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from pretrain.errors import DataError
from pretrain.storage import safetensors as tensor_file
from pretrain.storage.safetensors import Entry, read_elements, read_header, read_tensor, write_durably, write_tensors

TENSORS = {
    "b": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "a.weight": torch.randn(3, generator=torch.Generator().manual_seed(1)),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "transposed": torch.arange(12.0).view(3, 4).t(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_the_library_reads_streamed_files(
    chunk: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK", chunk)
    path = tmp_path / "x.safetensors"
    write_tensors(path, {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}, dtype, TENSORS.__getitem__)
    loaded = load_file(path)
    entries = read_header(path)
    assert set(loaded) == set(entries) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor.to(dtype)), name
        assert torch.equal(read_tensor(entries[name]), tensor.to(dtype).float()), name


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = {"a": torch.randn(4, 3).bfloat16(), "b": torch.randn(5), "c": torch.arange(3, dtype=torch.uint8)}
    save_file(stored, path, metadata={"format": "pt"})
    entries = read_header(path)
    assert torch.equal(read_tensor(entries["a"]), stored["a"].float())
    assert torch.equal(read_tensor(entries["b"]), stored["b"])
    with pytest.raises(DataError, match="dtype U8 is not supported"):
        read_tensor(entries["c"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: (1 << 40).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"F32"', b'"F3x"'),
        lambda data: b"PK\x03\x04" + data,
    ],
    ids=["empty", "truncated header", "truncated", "longer", "a header of a terabyte", "an unknown type", "an archive"],
)
def test_a_corrupt_file_is_refused_by_name(damage: object, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"x\.safetensors is not a safetensors file"):
        read_header(path)


def test_truncation_during_reading_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    entry = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:1_000])
    with pytest.raises(DataError, match="was truncated while being read"):
        read_tensor(entry)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_tensor(Entry("F32", (1,), path, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_range_is_read_into_any_dtype(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK", 3)
    stored = torch.randn(4, 5).to(dtype)
    save_file({"a": stored}, tmp_path / "x")
    entry = read_header(tmp_path / "x")["a"]
    for out_dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(7, dtype=out_dtype)
        read_elements(entry, 6, out)
        assert torch.equal(out, stored.view(-1)[6:13].to(out_dtype))


# --- durable writes: no copy, hashed from memory, fsynced -------------------------------------------------------------


def flat_tensors(sizes: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = (f"fp32/{number * 7}/blocks.{number}.wéight" for number in range(len(sizes)))
    return {name: torch.randn(size, generator=generator) for name, size in zip(names, sizes, strict=True)}


def check(path: Path, tensors: dict[str, Tensor]) -> None:
    written = write_durably(path, tensors)
    data = path.read_bytes()
    assert written == (len(data), hashlib.sha256(data).hexdigest())
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == torch.float32 and found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 300), max_size=30), st.integers(1, 700))
def test_the_library_reads_durably_written_files_of_any_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tensor_file, "CHUNK", chunk)
        check(tmp_path_factory.mktemp("pieces") / "rank-00000.safetensors", flat_tensors(sizes))


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [0, 5, 0], [1] * 3_000])
def test_empty_tensors_and_many_flat_tensors(tmp_path: Path, sizes: list[int]) -> None:
    check(tmp_path / "rank-00000.safetensors", flat_tensors(sizes))


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
    write_durably(tmp_path / "ours", tensors)
    ours, theirs = (tmp_path / "ours").read_bytes(), save(tensors)
    header, position = [], []
    for data in (ours, theirs):
        size = int.from_bytes(data[:8], "little")
        header.append(json.loads(data[8 : 8 + size]))
        position.append(8 + size)
    assert header[0] == header[1] and position[0] % 8 == 0
    assert ours[position[0] :] == theirs[position[1] :]


def test_the_complete_file_is_fsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    size, _ = write_durably(tmp_path / "file", flat_tensors([5]))
    assert flushed == [size]


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.float64), torch.zeros(8)[::2]], ids=["f64", "gaps"])
def test_tensors_that_would_need_a_copy_are_a_defect(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(AssertionError):
        write_durably(tmp_path / "file", {"fine": torch.zeros(2), "bad": tensor})


@pytest.mark.parametrize("size", [10, 20_000, 5_000_000])
def test_a_full_disk_is_an_os_error(size: int) -> None:
    with pytest.raises(OSError) as caught:
        write_durably(Path("/dev/full"), flat_tensors([size]))
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_during_writing_is_an_os_error(tmp_path: Path) -> None:
    """A limit of the file's size stands in for it: the second half of the tensor does not fit."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, unlimited[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_durably(tmp_path / "file", flat_tensors([5 << 20]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert caught.value.errno == errno.EFBIG
