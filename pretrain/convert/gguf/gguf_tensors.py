"""What llama.cpp's architectures hold of ours: reasons against, the tensors of a file, the keys that describe the model.

A tensor goes by its name in the Hugging Face folder of the same model (families/), and the package `gguf` knows what
llama.cpp calls it. So a family that exports to transformers needs a row of `ARCHITECTURES` here, and nothing else.

Rotary positions are the one thing that llama.cpp stores in another order. Its `llama` turns neighbouring channels (0, 1),
(2, 3) …, where transformers and we turn (0, C/2), (1, C/2 + 1) …: rows of queries and keys are put in that order. The other
architectures turn as we do.

Source: llama.cpp, conversion/*.py (the files and their keys) and src/models/*.cpp (what is loaded and computed).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.choose import choose_family
from pretrain.convert.families.family import HFTensor, heads_fill_the_width, mismatches
from pretrain.convert.files.weight_files import WeightSource, assemble, stored_shape
from pretrain.errors import UserError
from pretrain.model.positions import frequencies
from pretrain.model.rope_scaling import rope_frequencies

# Divides the frequency of each pair of channels; made here, and in no Hugging Face folder.
ROPE_FACTORS = "rope_freqs.weight"
SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Architecture:
    """A family as llama.cpp has it. `name` is that of `gguf.MODEL_ARCH`.

    interleaved   neighbouring channels of queries and keys turn together
    owns_head     a head is loaded even where the embedding is tied: it is written twice
    owns_biases   layers whose bias is loaded even where the model has none: zeros are written
    reasons       settings that transformers' code holds and llama.cpp's does not
    """

    name: str
    reasons: Callable[[ModelConfig], list[str]]
    interleaved: bool = False
    owns_head: bool = False
    owns_biases: tuple[str, ...] = ()


def _only(name: str, *, filled: bool = False, **allowed: tuple[Any, ...]) -> Callable[[ModelConfig], list[str]]:
    def reasons(model: ModelConfig) -> list[str]:
        width = heads_fill_the_width(model, name) if filled else []
        return mismatches(model, name, **allowed) + width

    return reasons


_STRETCHED = ("none", "linear", "yarn")  # llama3 needs a table of factors, which only `llama` loads
_TANH = ("gelu_tanh",)  # what llama.cpp computes as GELU
ARCHITECTURES = {
    "llama": Architecture("LLAMA", lambda model: [], interleaved=True),
    "qwen3": Architecture("QWEN3", _only("llama.cpp's Qwen3", rope_scaling=_STRETCHED, attention_bias=("none",))),
    "olmo2": Architecture(
        "OLMO2",
        _only("llama.cpp's OLMo 2", filled=True, rope_scaling=_STRETCHED, attention_bias=("none",)),
        owns_head=True,
    ),
    "gpt2": Architecture("GPT2", _only("llama.cpp's GPT-2", ffn=_TANH)),
    "starcoder2": Architecture(
        "STARCODER2",
        _only("llama.cpp's StarCoder2", filled=True, rope_scaling=_STRETCHED, ffn=_TANH),
        owns_biases=("self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
    "stablelm": Architecture("STABLELM", _only("llama.cpp's StableLM", rope_scaling=_STRETCHED), owns_head=True),
}


@dataclass(frozen=True)
class Row:
    """A tensor of the file: its name there, what it is made of, its shape, and the heads whose rows are reordered.

    One without `stored` holds the factors of `ROPE_FACTORS`.
    """

    name: str
    stored: HFTensor | None
    shape: tuple[int, ...]
    reordered_heads: int = 0


def choose_architecture(model: ModelConfig) -> tuple[str, Architecture]:
    """The family's name and llama.cpp's architecture. Raises UserError with every reason where there is none."""
    family = choose_family(model)
    architecture = ARCHITECTURES.get(family.model_type)
    if architecture is None:
        raise UserError(
            f"llama.cpp's architectures are written for {', '.join(ARCHITECTURES)}, not {family.model_type}"
        )
    reasons = architecture.reasons(model)
    if reasons:
        raise UserError(
            "llama.cpp cannot compute this model:\n" + "\n".join(f"  - {reason}" for reason in reasons),
            hint="transformers can: pretrain export RUN DIR --to hf",
        )
    return family.model_type, architecture


def rows_of(source: WeightSource, gguf: Any) -> list[Row]:
    """All tensors of the file, in their order. `gguf` is the package. Raises as `choose_architecture`."""
    model = source.config.model
    _, architecture = choose_architecture(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], model.n_layers)
    rows = []
    for tensor in _stored(source, architecture):
        name = names.get_name(tensor.name, try_suffixes=SUFFIXES)
        if name is None:
            raise UserError(f"llama.cpp's {architecture.name} has no tensor for {tensor.name}")
        # llama.cpp keeps all matrices as (out, in), GPT-2's too, which transformers transposes.
        upright = replace(tensor, transposed=False)
        heads = _rotated_heads(tensor.name, model) if architecture.interleaved else 0
        rows.append(Row(name, upright, stored_shape(upright, source.shapes), heads))
    if model.rope_scaling == "llama3":
        rows.append(Row(ROPE_FACTORS, None, (model.rotary_width // 2,)))
    return rows


def _stored(source: WeightSource, architecture: Architecture) -> Iterator[HFTensor]:
    """The tensors of the Hugging Face folder, and those that llama.cpp wants besides."""
    model = source.config.model
    tensors = choose_family(model).tensors(model)
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        yield tensor
        layer = tensor.name.removesuffix(".weight")
        if layer.endswith(architecture.owns_biases) and layer != tensor.name and f"{layer}.bias" not in names:
            yield HFTensor(f"{layer}.bias", fill="zeros", shape=stored_shape(tensor, source.shapes)[:1])
    if model.tie_embeddings and architecture.owns_head:
        yield HFTensor("lm_head.weight", ("embedding.tokens.weight",))


def tensor_of(row: Row, source: WeightSource) -> Tensor:
    """What the row holds, fp32, on the CPU. Raises ExportError where an element is not finite."""
    if row.stored is None:
        return rope_factors(source.config.model)
    whole = assemble(source, row.stored, torch.float32)
    return interleave(whole, row.reordered_heads) if row.reordered_heads else whole.contiguous()


def interleave(rows: Tensor, n_heads: int) -> Tensor:
    """(heads × C, …) with the channels of each head from halves (0 … C/2, C/2 …) to pairs (0, C/2, 1, C/2 + 1, …)."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, n_heads: int) -> Tensor:
    """The way back of `interleave`."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_factors(model: ModelConfig) -> Tensor:
    """By how much each pair of channels turns slower than without scaling, (rotary width / 2,), fp32."""
    cpu = torch.device("cpu")
    scaled, _ = rope_frequencies(model, cpu)
    return frequencies(model.rotary_width, model.rope_theta, cpu) / scaled


def add_model_keys(writer: Any, model: ModelConfig, seq_len: int, gguf: Any) -> None:
    """Shape, norms and positions of the model; `seq_len` is the context that was trained."""
    family = choose_family(model)
    writer.add_context_length(family.context(model, seq_len))
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.d_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_vocab_size(model.vocab_size)
    (writer.add_layer_norm_rms_eps if model.norm == "rmsnorm" else writer.add_layer_norm_eps)(model.norm_eps)
    if family.model_type == "stablelm":
        writer.add_parallel_residual(False)
    if model.positions != "rope":
        return
    writer.add_rope_dimension_count(model.rotary_width)
    writer.add_rope_freq_base(model.rope_theta)
    if model.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(model.rope_scaling))
        writer.add_rope_scaling_factor(model.rope_factor)
    if model.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(model.rope_original_seq_len)
        writer.add_rope_scaling_yarn_beta_fast(model.rope_beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(model.rope_beta_slow)


def _rotated_heads(name: str, model: ModelConfig) -> int:
    part = name.rpartition(".")[0].rpartition(".")[2]
    return {"q_proj": model.n_heads, "k_proj": model.n_kv_heads}.get(part, 0)
