from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import piece_key, write_pieces
from pretrain.config.load import config_text
from pretrain.config.schema import Config, DataConfig
from pretrain.convert import average
from pretrain.convert.average import open_average
from pretrain.errors import CheckpointError, UserError
from tests.support.checkpoints import flip_a_bit
from tests.support.weight_source import memory_source, small_model


def save(place: Path, step: int, seed: int, *, tokenizer: bytes = b"model", **changes: Any) -> dict[str, Tensor]:
    """A save of the weights alone whose parameters lie in two pieces each. Returns them."""
    config = Config(model=small_model(**changes), data=DataConfig(seq_len=96))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in memory_source(None, config.model).tensors.items()
    }
    staging = layout.staging_folder(place, step, 1)
    staging.mkdir(parents=True)
    state = {"step": step, "samples": 10 * step, "tokens": 100 * step, "ledger": {}}
    files = {
        layout.STATE: layout.json_bytes(state),
        layout.CONFIG: config_text(config).encode(),
        "tokenizer.model": tokenizer,
    }
    entries = [layout.write_file(staging / name, data) for name, data in files.items()]
    for rank in range(2):
        pieces = {}
        for name, tensor in tensors.items():
            half = tensor.numel() // 2
            start, part = (0, tensor.view(-1)[:half]) if rank == 0 else (half, tensor.view(-1)[half:])
            pieces[piece_key("fp32", start, name)] = part
        entries.append(write_pieces(staging / f"rank-{rank:05d}.safetensors", pieces))
    layout.commit(place, step, entries, 1)
    return tensors


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> tuple[Path, dict[int, dict[str, Tensor]]]:
    """Steps 2, 4 and 8, of which 4 is a save of the weights alone."""
    places = {2: "checkpoints", 4: "weights", 8: "checkpoints"}
    return tmp_path, {step: save(tmp_path / place, step, seed=step) for step, place in places.items()}


@pytest.mark.parametrize(
    ("count", "step", "steps"), [(1, None, (8,)), (2, None, (4, 8)), (3, None, (2, 4, 8)), (2, 4, (2, 4))]
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_the_mean_is_that_of_the_newest_in_fp64(
    chunk: int,
    count: int,
    step: int | None,
    steps: tuple[int, ...],
    run: tuple[Path, dict[int, dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(average, "CHUNK", chunk)
    folder, saved = run
    source = open_average(folder, count, step)
    assert source.averaged == steps
    assert (source.step, source.tokens, source.state["samples"]) == (steps[-1], 100 * steps[-1], 10 * steps[-1])
    assert source.tokenizer is not None and source.tokenizer.read_bytes() == b"model"
    for name in ("blocks.0.attention.key.weight", "final_norm.weight"):
        expected = sum(saved[step][name].double() for step in steps) / len(steps)
        assert torch.equal(source.tensor(name), expected.float())


def test_fewer_checkpoints_than_asked_for_are_refused_with_those_that_there_are(
    run: tuple[Path, dict[int, dict[str, Tensor]]],
) -> None:
    with pytest.raises(CheckpointError, match=r"--average 4: .* has 3 checkpoints: 2, 4, 8"):
        open_average(run[0], 4)
    with pytest.raises(CheckpointError, match=r"--average 3: .* has 2 checkpoints up to step 4: 2, 4"):
        open_average(run[0], 3, step=4)
    with pytest.raises(CheckpointError, match="no step 5"):
        open_average(run[0], 2, step=5)
    with pytest.raises(UserError, match="does not exist"):
        open_average(run[0] / "nothing", 2)


def test_another_model_or_tokenizer_among_them_is_refused(run: tuple[Path, dict[int, dict[str, Tensor]]]) -> None:
    save(run[0] / "checkpoints", 9, seed=9, rope_theta=500_000.0)
    with pytest.raises(CheckpointError, match=r"steps 8 and 9 .*model\.rope_theta: 10000\.0 → 500000\.0"):
        open_average(run[0], 2)
    save(run[0] / "checkpoints", 10, seed=10, rope_theta=500_000.0, tokenizer=b"another")
    with pytest.raises(CheckpointError, match=r"steps 9 and 10 .*the tokenizer"):
        open_average(run[0], 2)
    save(run[0] / "checkpoints", 11, seed=11, rope_theta=500_000.0, tokenizer=b"another", init_std=0.5)
    assert open_average(run[0], 2).averaged == (10, 11)


def test_a_damaged_one_is_refused(run: tuple[Path, dict[int, dict[str, Tensor]]]) -> None:
    flip_a_bit(run[0] / "weights" / "step-00000004" / "rank-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors is corrupt"):
        open_average(run[0], 2)
    assert open_average(run[0], 1).averaged == (8,)
