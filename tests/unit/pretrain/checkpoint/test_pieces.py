"""Any range of any parameter is read, however it was split into pieces."""

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint import pieces
from pretrain.checkpoint.layout import FileEntry
from pretrain.checkpoint.pieces import PieceIndex, piece_key, write_pieces
from pretrain.errors import CheckpointError

KINDS = ("fp32", "exp_avg", "exp_avg_sq")
NAMES = ("blocks.0.weight", "blocks.10.weight", "embedding/tokens.weight")


def write(folder: Path, *files: dict[str, Tensor]) -> list[Path]:
    paths = [folder / f"rank-{rank:05d}.safetensors" for rank in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        write_pieces(path, tensors)
    return paths


def numbered(count: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[int]:
    inner = draw(st.lists(st.integers(0, size), max_size=6))
    return sorted({0, size, *inner})


@settings(max_examples=80)
@given(data=st.data(), ranks=st.integers(1, 5), size=st.integers(1, 60))
def test_every_range_of_every_parameter_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ranks: int, size: int
) -> None:
    whole = {(kind, name): torch.randn(size) for kind in KINDS for name in NAMES}
    files: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for (kind, name), tensor in whole.items():
        for start, end in pairwise(data.draw(cuts(size))):
            files[data.draw(st.integers(0, ranks - 1))][piece_key(kind, start, name)] = tensor[start:end]
    index = PieceIndex(write(tmp_path_factory.mktemp("pieces"), *files))
    assert index.names() == sorted(NAMES)
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    for (kind, name), tensor in whole.items():
        surrounded = torch.full((end - start + 2,), 7.0)
        index.read(kind, name, start, surrounded[1:-1])
        assert torch.equal(surrounded[1:-1], tensor[start:end])
        assert surrounded[0] == surrounded[-1] == 7.0, "nothing beside the range is touched"
        assert torch.equal(index.read_parameter(kind, name, (size, 1)), tensor.view(size, 1))


@pytest.mark.parametrize(
    ("starts", "missing"), [([4, 8], 0), ([0, 8], 4), ([0, 4], 8), ([], 0)], ids=["first", "middle", "last", "all"]
)
def test_a_gap_is_an_error_that_says_where(starts: list[int], missing: int, tmp_path: Path) -> None:
    held = {piece_key("fp32", start, "weight"): numbered(4, start) for start in starts}
    index = PieceIndex(write(tmp_path, held, {piece_key("fp32", 0, "other"): numbered(4)}))
    with pytest.raises(CheckpointError, match=f"fp32 of weight has no element {missing}: "):
        index.read_parameter("fp32", "weight", (12,))
    for start in starts:
        out = torch.empty(4)
        index.read("fp32", "weight", start, out)
        assert torch.equal(out, numbered(4, start)), "what is there can be read"


def test_a_parameter_that_is_shorter_than_the_model_s_is_an_error(tmp_path: Path) -> None:
    index = PieceIndex(write(tmp_path, {piece_key("fp32", 0, "weight"): numbered(10)}))
    with pytest.raises(CheckpointError, match="has no element 10: the checkpoint is of another model"):
        index.read_parameter("fp32", "weight", (3, 4))


def test_moments_that_were_not_saved_are_named(tmp_path: Path) -> None:
    index = PieceIndex(write(tmp_path, {piece_key("fp32", 0, "weight"): numbered(4)}))
    with pytest.raises(CheckpointError, match="holds no exp_avg of weight: a weights-only save"):
        index.read("exp_avg", "weight", 0, torch.empty(4))
    with pytest.raises(CheckpointError, match="exp_avg of other has no element 0"):
        index.read("exp_avg", "other", 0, torch.empty(4))


def test_pieces_that_overlap_and_empty_ones_are_no_obstacle(tmp_path: Path) -> None:
    starts = {0: 6, 4: 1, 5: 5, 6: 0, 8: 4}
    files = [{piece_key("fp32", start, "weight"): numbered(count, start)} for start, count in starts.items()]
    index = PieceIndex(write(tmp_path, *files))
    assert torch.equal(index.read_parameter("fp32", "weight", (12,)), numbered(12))


def test_a_range_is_read_as_another_type(tmp_path: Path) -> None:
    index = PieceIndex(write(tmp_path, {piece_key("fp32", 0, "weight"): torch.full((4,), 1 / 3)}))
    out = torch.empty(4, dtype=torch.bfloat16)
    index.read("fp32", "weight", 0, out)
    assert torch.equal(out, torch.full((4,), 1 / 3).bfloat16())


def test_headers_are_parsed_once_however_many_pieces_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [{piece_key("fp32", 2 * i, f"p{rank}"): numbered(2, 2 * i) for i in range(50)} for rank in (0, 1)]
    paths = write(tmp_path, *held)
    opened = []
    real = pieces.read_header
    monkeypatch.setattr(pieces, "read_header", lambda path: opened.append(path) or real(path))
    index = PieceIndex(paths)
    for name in ("p0", "p1"):
        assert torch.equal(index.read_parameter("fp32", name, (100,)), numbered(100))
    assert opened == paths


def test_a_file_that_is_cut_or_taken_away_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (path,) = write(tmp_path, {piece_key("fp32", 0, "weight"): numbered(5_000)})
    index = PieceIndex([path])
    os.truncate(path, path.stat().st_size - 4)
    assert torch.equal(index.read_parameter("fp32", "weight", (4_999,)), numbered(4_999))
    with pytest.raises(CheckpointError, match="was truncated while being read"):
        index.read_parameter("fp32", "weight", (5_000,))
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        index.read_parameter("fp32", "weight", (5_000,))


def test_metadata_of_another_writer_is_passed_over(tmp_path: Path) -> None:
    save_file({piece_key("fp32", 0, "weight"): numbered(4)}, tmp_path / "a", metadata={"format": "pt"})
    assert torch.equal(PieceIndex([tmp_path / "a"]).read_parameter("fp32", "weight", (4,)), numbered(4))


@pytest.mark.parametrize("key", ["weight", "fp32/weight", "fp32/x/weight", "fp32/-1/weight", "fp32//weight"])
def test_a_key_that_names_no_piece_is_an_error(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file of pieces"):
        PieceIndex(write(tmp_path, {key: numbered(3)}))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        PieceIndex([tmp_path / "rank-00000.safetensors"])


def test_the_manifest_entry_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    entry = write_pieces(path, {piece_key("fp32", 0, "weight"): numbered(4)})
    assert entry == FileEntry(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(AssertionError):
        write_pieces(path, {piece_key("fp32", 0, "weight"): torch.zeros(2, 2)})
