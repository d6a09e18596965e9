"""Directories as others write them, made by transformers itself: the decoder's logits are its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from pretrain.checkpoint.checkpoint_reader import open_checkpoint
from pretrain.config import load_config
from pretrain.convert.files.hf_reader import HfSource
from pretrain.convert.import_hf import import_hf
from pretrain.convert.weight_sources import load_decoder
from pretrain.training.startup.init_weights import find_initial_weights
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401

TINY: dict[str, Any] = {
    "vocab_size": 1_024,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    """The arguments of a configuration, in the names of the transformers that is installed."""
    if transformers.__version__ < "5":
        return {"rope_theta": theta, "rope_scaling": LLAMA3}
    return {"rope_parameters": {"rope_theta": theta, **scaling}}


def gpt2(**changes: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 1_024, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **changes))


def llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**TINY, **changes))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama3, tied, biases": lambda: llama(
        **rope(500_000.0, **LLAMA3), tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama, yarn, heads of another width": lambda: llama(
        **rope(1e4, rope_type="yarn", factor=3.0, original_max_position_embeddings=32),
        head_dim=24,
    ),
    "llama, linear": lambda: llama(**rope(1e4, rope_type="linear", factor=2.0)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=32, attention_bias=True)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**TINY)),
    "gpt2": gpt2,
    "gpt2, untied, exact GELU": lambda: gpt2(activation_function="gelu", tie_word_embeddings=False, n_inner=100),
    "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**TINY)),
    "starcoder2, no biases": lambda: Starcoder2ForCausalLM(
        Starcoder2Config(**TINY, use_bias=False, hidden_act="gelu", tie_word_embeddings=False)
    ),
    "stablelm": lambda: StableLmForCausalLM(StableLmConfig(**TINY, use_qkv_bias=True)),
}


def made(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Vectors are not left at one or zero, or exchanging two of them would change nothing."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def assert_the_same(directory: Path) -> None:
    """Both from the files: a model that was rounded has rounded its rotary frequencies with it."""
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_decoder(HfSource(directory))
    tokens_BT = torch.randint(1_024, (2, 96), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected_BTV, found_BTV = theirs(tokens_BT).logits, ours(tokens_BT)
    assert (expected_BTV - found_BTV).abs().max() <= 1e-5


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_decoder_computes_what_transformers_computes(
    dtype: torch.dtype, make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = made(make).to(dtype)
    # Files of 100 KB: the tensors of a block lie in several.
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB" if dtype == torch.bfloat16 else "1GB")
    assert_the_same(tmp_path / "theirs")


def test_gpt2_files_of_old_are_read(tmp_path: Path) -> None:
    """Those on the Hub: no prefix, the causal mask and its filling as tensors."""
    model = made(gpt2)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    for block in range(2):
        tensors[f"h.{block}.attn.bias"] = torch.ones(96, 96, dtype=torch.uint8).tril()
        tensors[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_the_same(tmp_path)


def test_llama_files_of_old_are_read(tmp_path: Path) -> None:
    """Config keys of transformers 4 alone, and the frequencies as tensors."""
    model = made(lambda: llama(**rope(500_000.0, **LLAMA3)))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(8) for n in range(2)}
    torch.save(model.state_dict() | frequencies, tmp_path / "pytorch_model.bin")
    values = json.loads((tmp_path / "config.json").read_text())
    values = {key: value for key, value in values.items() if key not in ("rope_parameters", "dtype", "head_dim")}
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_theta": 500_000.0, "rope_scaling": LLAMA3}))
    assert_the_same(tmp_path)


def test_an_import_is_a_run_whose_masters_are_the_weights_bit_for_bit(
    sentencepiece_model: Path, tmp_path: Path
) -> None:
    model = made(lambda: llama(tie_word_embeddings=True)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    report = import_hf(tmp_path / "theirs", tmp_path / "run", tokenizer=sentencepiece_model)
    reader = open_checkpoint(tmp_path / "run")
    assert (reader.step, reader.tokens, reader.state["imported_from"]) == (0, 0, "theirs")
    state = model.state_dict()
    assert torch.equal(reader.tensor("embedding.tokens.weight"), state["model.embed_tokens.weight"].float())
    assert torch.equal(
        reader.tensor("blocks.1.feed_forward.down.weight"), state["model.layers.1.mlp.down_proj.weight"].float()
    )
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())

    # What it writes is a whole configuration: only data are missing, and its weights fit it.
    config = load_config(tmp_path / "run" / "config.yaml", ["data.train.own.path=x"]).config
    assert config.run.dir == str(tmp_path / "run")
    assert (config.data.seq_len, config.model.max_seq_len) == (64, 96)
    assert Path(config.data.tokenizer or "").read_bytes() == sentencepiece_model.read_bytes()
    find_initial_weights(config, hashes=False)
