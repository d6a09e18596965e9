from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.errors import DataError
from pretrain.storage import safetensors as tensor_file
from pretrain.storage.safetensors import Entry, read_header, read_tensor, write_tensors

TENSORS = {
    "b": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "a.weight": torch.randn(3, generator=torch.Generator().manual_seed(1)),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "transposed": torch.arange(12.0).view(3, 4).t(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_the_library_reads_what_is_written(
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


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = {"a": torch.randn(4, 3).bfloat16(), "b": torch.randn(5), "c": torch.arange(3, dtype=torch.uint8)}
    save_file(stored, path, metadata={"format": "pt"})
    entries = read_header(path)
    assert torch.equal(read_tensor(entries["a"]), stored["a"].float())
    assert torch.equal(read_tensor(entries["b"]), stored["b"])
    with pytest.raises(DataError, match="of the type U8"):
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
    ids=["empty", "cut in the header", "cut", "longer", "a header of a terabyte", "an unknown type", "an archive"],
)
def test_a_damaged_file_is_refused_by_name(damage: object, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"x\.safetensors is not a safetensors file"):
        read_header(path)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    entry = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:1_000])
    with pytest.raises(DataError, match="has become shorter"):
        read_tensor(entry)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_tensor(Entry("F32", (1,), path, 0))
