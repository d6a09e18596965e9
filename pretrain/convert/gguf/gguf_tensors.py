"""llama.cpp's architectures: incompatibilities with a model, the tensors of its GGUF file, and its keys.

The package `gguf` maps a tensor's name in the Hugging Face directory (families/) to llama.cpp's name. So a family that
exports to transformers needs only a row of `ARCHITECTURES` here.

llama.cpp's `llama` rotates neighbouring channels (0, 1), (2, 3) …; transformers and our decoder rotate (0, C/2),
(1, C/2 + 1) …. So rows of queries and keys are reordered for it. The other architectures rotate like ours.

Source: llama.cpp, conversion/*.py (the files and their keys) and src/models/*.cpp (what is loaded and computed).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.choose import choose_family
from pretrain.convert.families.family import HFTensor, heads_span_width, unsupported_settings
from pretrain.convert.files.weight_files import WeightSource, assemble, stored_shape
from pretrain.errors import UserError
from pretrain.model.positions import frequencies
from pretrain.model.rope_scaling import rope_frequencies

# Divides the frequency of each pair of channels; not in Hugging Face directories.
ROPE_FACTORS = "rope_freqs.weight"
SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp. `name` is a member of `gguf.MODEL_ARCH`.

    incompatibilities   a sentence for each setting that transformers has and llama.cpp lacks
    interleaved         neighbouring channels of queries and keys are rotated together
    requires_head       a tied head is loaded too: the embedding is written twice
    requires_biases     layers whose bias is loaded even if the model has none: zeros are written
    """

    name: str
    incompatibilities: Callable[[ModelConfig], list[str]]
    interleaved: bool = False
    requires_head: bool = False
    requires_biases: tuple[str, ...] = ()


def _only(name: str, *, span_width: bool = False, **allowed: tuple[Any, ...]) -> Callable[[ModelConfig], list[str]]:
    def incompatibilities(model: ModelConfig) -> list[str]:
        return unsupported_settings(model, name, **allowed) + (heads_span_width(model, name) if span_width else [])

    return incompatibilities


_SCALINGS = ("none", "linear", "yarn")  # llama3 needs a table of factors, which only `llama` loads
_TANH = ("gelu_tanh",)  # llama.cpp's GELU
ARCHITECTURES = {
    "llama": Architecture("LLAMA", lambda model: [], interleaved=True),
    "qwen3": Architecture("QWEN3", _only("llama.cpp's Qwen3", rope_scaling=_SCALINGS, attention_bias=("none",))),
    "olmo2": Architecture(
        "OLMO2",
        _only("llama.cpp's OLMo 2", span_width=True, rope_scaling=_SCALINGS, attention_bias=("none",)),
        requires_head=True,
    ),
    "gpt2": Architecture("GPT2", _only("llama.cpp's GPT-2", ffn=_TANH)),
    "starcoder2": Architecture(
        "STARCODER2",
        _only("llama.cpp's StarCoder2", span_width=True, rope_scaling=_SCALINGS, ffn=_TANH),
        requires_biases=("self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
    "stablelm": Architecture("STABLELM", _only("llama.cpp's StableLM", rope_scaling=_SCALINGS), requires_head=True),
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, converted from `hf_tensor`; None for the table of `ROPE_FACTORS`.

    `reordered_heads` is the number of heads whose rows are interleaved, 0 for no reordering.
    """

    name: str
    hf_tensor: HFTensor | None
    shape: tuple[int, ...]
    reordered_heads: int = 0


def choose_architecture(model: ModelConfig) -> tuple[str, Architecture]:
    """The family's name and llama.cpp's architecture. Raises UserError with all incompatibilities if there is none."""
    family = choose_family(model)
    architecture = ARCHITECTURES.get(family.model_type)
    if architecture is None:
        raise UserError(
            f"model_type {family.model_type} cannot be exported to GGUF; one of {', '.join(ARCHITECTURES)} can"
        )
    incompatibilities = architecture.incompatibilities(model)
    if incompatibilities:
        raise UserError(
            "llama.cpp cannot compute this model:\n" + "\n".join(f"  - {text}" for text in incompatibilities),
            hint="export for transformers: pretrain export RUN DIR --to hf",
        )
    return family.model_type, architecture


def gguf_tensors(source: WeightSource, gguf: Any) -> list[GgufTensor]:
    """All tensors of the file, in order. `gguf` is the package. Raises as `choose_architecture`."""
    model = source.config.model
    _, architecture = choose_architecture(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], model.n_layers)
    found = []
    for tensor in _hf_tensors(source, architecture):
        name = names.get_name(tensor.name, try_suffixes=SUFFIXES)
        if name is None:
            raise UserError(f"llama.cpp's {architecture.name} has no tensor for {tensor.name}")
        # llama.cpp stores all matrices as (out, in), including GPT-2's, which transformers transposes.
        upright = replace(tensor, transposed=False)
        heads = _rotated_heads(tensor.name, model) if architecture.interleaved else 0
        found.append(GgufTensor(name, upright, stored_shape(upright, source.shapes), heads))
    if model.rope_scaling == "llama3":
        found.append(GgufTensor(ROPE_FACTORS, None, (model.rotary_width // 2,)))
    return found


def _hf_tensors(source: WeightSource, architecture: Architecture) -> Iterator[HFTensor]:
    """The tensors of the Hugging Face directory, and those that llama.cpp requires in addition."""
    model = source.config.model
    tensors = choose_family(model).tensors(model)
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        yield tensor
        layer = tensor.name.removesuffix(".weight")
        if layer.endswith(architecture.requires_biases) and layer != tensor.name and f"{layer}.bias" not in names:
            yield HFTensor(f"{layer}.bias", fill="zeros", shape=stored_shape(tensor, source.shapes)[:1])
    if model.tie_embeddings and architecture.requires_head:
        yield HFTensor("lm_head.weight", ("embedding.tokens.weight",))


def load_values(tensor: GgufTensor, source: WeightSource) -> Tensor:
    """Values of the tensor, fp32, on the CPU. Raises ExportError if an element is not finite."""
    if tensor.hf_tensor is None:
        return rope_factors(source.config.model)
    values = assemble(source, tensor.hf_tensor, torch.float32)
    return interleave(values, tensor.reordered_heads) if tensor.reordered_heads else values.contiguous()


def interleave(rows: Tensor, n_heads: int) -> Tensor:
    """(heads × C, …) → the same shape, with the channels of each head in the order 0, C/2, 1, C/2 + 1, …"""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, n_heads: int) -> Tensor:
    """Inverse of `interleave`."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_factors(model: ModelConfig) -> Tensor:
    """Unscaled over scaled frequency of each pair of channels, (rotary width / 2,), fp32."""
    cpu = torch.device("cpu")
    scaled, _ = rope_frequencies(model, cpu)
    return frequencies(model.rotary_width, model.rope_theta, cpu) / scaled


def add_model_keys(writer: Any, model: ModelConfig, seq_len: int, gguf: Any) -> None:
    """Add shape, norms and positions of the model; `seq_len` is the training length."""
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
