"""run.init_from: every ZeRO stage, on one process and on several, starts with the named weights, bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.schema import Config, RunConfig
from pretrain.convert.families.choose import choose_family, config_json
from pretrain.convert.files.weight_files import write_weights
from pretrain.convert.import_hf import import_hf
from pretrain.distributed.engine import Engine
from pretrain.distributed.world import World
from pretrain.training.startup.init_weights import find_initial_weights, load_initial_weights
from tests.support.elastic import (
    CPU,
    Setup,
    deepspeed,
    make_config,
    run_group,
    safe_get_full_fp32_param,
    same_bits,
    setup,
    train,
)
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import MemorySource, memory_source

# Rotary positions want an even width of the heads; nothing else is divisible by 2 or 3.
SHAPE: dict[str, Any] = {"positions": "rope", "d_model": 30, "vocab_size": 1_031}
SETUPS = [setup(stage, world) for world in (1, 2, 3) for stage in (0, 1, 2, 3)]
SETUPS += [setup(stage, 2, "bf16") for stage in (1, 2, 3)]


def config_of(how: Setup, start: Path | None) -> Config:
    config = make_config(how)
    return replace(
        config, run=RunConfig(init_from=None if start is None else str(start)), model=replace(config.model, **SHAPE)
    )


def weights(tokenizer: Path | None) -> MemorySource:
    return memory_source(tokenizer, config_of(setup(0, 1), None).model)


def held(engine: Engine, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The whole master, and the weight that the forward uses, as DeepSpeed's own interface gives them."""
    if engine.stage == 0:
        return {"weight": parameter.detach().clone()}
    master = safe_get_full_fp32_param(parameter)
    if engine.stage < 3:
        return {"master": master, "weight": parameter.detach().clone()}
    with deepspeed.zero.GatheredParameters(parameter):
        return {"master": master, "weight": parameter.detach().clone()}


def start_all(world: World, root: Path, setups: list[Setup]) -> None:
    """Each setup from the imported run and from the directory itself, the second time into an engine that has trained."""
    expected = weights(None).tensors
    for how in setups:
        engine = Engine(config_of(how, None), world, CPU)
        for start in (root / "run", root / "theirs"):
            config = config_of(how, start)
            folder = find_initial_weights(config, hashes=True)
            assert folder is not None
            load_initial_weights(folder, engine)
            for name, parameter in engine.model.named_parameters():
                for kind, tensor in held(engine, parameter).items():
                    wanted = expected[name].to(tensor.dtype).flatten()
                    assert same_bits(tensor.flatten(), wanted), f"{how.name} from {start.name}: {kind} of {name}"
            train(engine, world, range(1, 2))
        engine.close()


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_masters_and_weights_are_those_of_the_source(world: int, sentencepiece_model: Path, tmp_path: Path) -> None:
    source, theirs = weights(None), tmp_path / "theirs"
    theirs.mkdir()
    family = choose_family(source.config.model)
    write_weights(source, theirs, family.tensors(source.config.model), torch.float32, 20_000)
    (theirs / "config.json").write_text(json.dumps(config_json(family, source.config.model, 13, "float32", {})))
    import_hf(theirs, tmp_path / "run", tokenizer=sentencepiece_model)
    run_group(world, start_all, tmp_path, [how for how in SETUPS if how.world == world], scratch=tmp_path)
