"""Shared code of the families with Llama's names: their tensors and config.json follow from a row of llama_table.py.

The decoder computes what Llama computes (rotate-half RoPE, `weight * x` after the norm's rounding, linear weights as
(out, in)), so tensors are only renamed: no permutation, no transposition.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.activations import EXPORTED, read_activation
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import (
    Family,
    HFTensor,
    bias,
    full_rotation,
    head,
    in_each_block,
    norm,
    unsupported_settings,
    weight,
)
from pretrain.convert.families.rope import read_rope, rope_json

# Modules and layers by their names in transformers, with our names, in file order.
PRE_NORM_BLOCK = {
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp": "feed_forward",
}
ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
SWIGLU = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True)
class LlamaLike:
    """Differences of a family from Llama. `name` is its name in messages.

    allowed         settings of our `model` section with the values that the family holds; an import sets single values
    bias_switches   keys of config.json, each with the layers that it gives a bias
    conditions      further conditions on a model; each returns its incompatibilities
    block           modules of a block
    feed_forward    linear layers of the feed-forward network
    eps_key         key of the norm's epsilon
    writes_head_dim head_dim is written even if it is d_model / n_heads
    constants       further keys of config.json
    check           adds the problems of a config.json, given the values of our `model` section
    ignored         as in `Family`

    The defaults are those of transformers for keys that a config.json lacks. default_head_dim = 0 stands for
    hidden_size / num_attention_heads; default_rope_fraction = None if the family rotates all channels of a head.
    """

    model_type: str
    architecture: str
    name: str
    allowed: Mapping[str, tuple[Any, ...]]
    bias_switches: Mapping[str, tuple[str, ...]]
    conditions: tuple[Callable[[ModelConfig, str], list[str]], ...] = (full_rotation,)
    block: Mapping[str, str] = field(default_factory=lambda: PRE_NORM_BLOCK)
    feed_forward: Mapping[str, str] = field(default_factory=lambda: SWIGLU)
    eps_key: str = "rms_norm_eps"
    writes_head_dim: bool = False
    default_eps: float = 1e-6
    default_bias: bool = False
    default_tied: bool = False
    default_head_dim: int = 0
    default_rope_fraction: float | None = None
    constants: Callable[[ModelConfig], dict[str, Any]] = lambda model: {}
    check: Callable[[ConfigFile, dict[str, Any]], None] = lambda file, model: None
    ignored: tuple[str, ...] = ()

    def family(self) -> Family:
        """The declaration that exports and imports use."""
        return Family(
            self.model_type,
            self.architecture,
            self.incompatibilities,
            self.tensors,
            self.to_json,
            self.from_json,
            ignored=self.ignored,
        )

    def incompatibilities(self, model: ModelConfig) -> list[str]:
        """A sentence for each setting that the stock code lacks."""
        found = unsupported_settings(model, self.name, **self.allowed)
        return found + [text for condition in self.conditions for text in condition(model, self.name)]

    def tensors(self, model: ModelConfig) -> list[HFTensor]:
        """All tensors of a file."""
        return [
            weight("model.embed_tokens", "embedding.tokens"),
            *in_each_block(model, self._block(model)),
            *norm(model, "model.norm", "final_norm"),
            *head(model),
        ]

    def _block(self, model: ModelConfig) -> Iterator[HFTensor]:
        for theirs, ours in self.block.items():
            module, source = f"model.layers.{{n}}.{theirs}", f"blocks.{{n}}.{ours}"
            if ours == "feed_forward":
                yield from self._linear(model, module, source, self.feed_forward)
            elif ours == "attention":
                yield from self._linear(model, module, source, ATTENTION)
                if model.qk_norm != "none":
                    yield weight(f"{module}.q_norm", f"{source}.query_norm")
                    yield weight(f"{module}.k_norm", f"{source}.key_norm")
            else:
                yield from norm(model, module, source)

    def _linear(self, model: ModelConfig, module: str, source: str, layers: Mapping[str, str]) -> Iterator[HFTensor]:
        biased = {layer for group in self.bias_switches.values() if _any_bias(model, group) for layer in group}
        for theirs, ours in layers.items():
            names = f"{module}.{theirs}", f"{source}.{ours}"
            yield weight(*names)
            if ours in biased:
                yield bias(*names, present=_has_bias(model, ours), width=_width(model, ours))

    def to_json(self, model: ModelConfig, context: int) -> dict[str, Any]:
        """The family's part of config.json. The order of keys is that of earlier exports."""
        values = {
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "intermediate_size": model.d_ff,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": model.n_heads,
            "num_key_value_heads": model.n_kv_heads,
            "max_position_embeddings": context,
            **rope_json(model),
            "tie_word_embeddings": model.tie_embeddings,
            "attention_dropout": 0.0,
            "initializer_range": model.init_std,
            "use_cache": True,
        }
        if self.default_rope_fraction is not None:
            values |= rope_json(model, partial=True)
        if self.writes_head_dim or model.n_heads * model.head_width != model.d_model:
            values["head_dim"] = model.head_width
        return (
            values
            | {"hidden_act": "silu" if model.ffn == "swiglu" else EXPORTED[model.ffn], self.eps_key: model.norm_eps}
            | {key: _any_bias(model, layers) for key, layers in self.bias_switches.items()}
            | self.constants(model)
        )

    def from_json(self, file: ConfigFile) -> dict[str, Any]:
        """Values of our `model` section."""
        d_model, n_heads = file.integer("hidden_size"), file.integer("num_attention_heads")
        max_seq_len = file.integer("max_position_embeddings")
        head_dim = file.integer("head_dim", self.default_head_dim or max(1, d_model // n_heads))
        fixed = {key: values[0] for key, values in self.allowed.items() if len(values) == 1}
        biased = {
            layer
            for key, layers in self.bias_switches.items()
            if file.truth(key, self.default_bias)
            for layer in layers
        }
        model = {
            **fixed,
            "vocab_size": file.integer("vocab_size"),
            "d_model": d_model,
            "d_ff": file.integer("intermediate_size"),
            "n_layers": file.integer("num_hidden_layers"),
            "n_heads": n_heads,
            "n_kv_heads": file.integer("num_key_value_heads", n_heads),
            "head_dim": 0 if head_dim * n_heads == d_model else head_dim,
            "max_seq_len": max_seq_len,
            **read_rope(file, max_seq_len, fraction=self.default_rope_fraction),
            "norm_eps": file.number(self.eps_key, self.default_eps),
            "norm_bias": fixed["norm"] == "layernorm",
            "attention_bias": "all" if "output" in biased else "qkv" if "query" in biased else "none",
            "ffn_bias": "up" in biased,
            "ffn": self._read_ffn(file),
            "tie_embeddings": file.truth("tie_word_embeddings", self.default_tied),
            "init_std": file.number("initializer_range", 0.02) or 0.02,
        }
        self.check(file, model)
        return model

    def _read_ffn(self, file: ConfigFile) -> str:
        if self.feed_forward is not SWIGLU:
            return read_activation(file, "hidden_act", "gelu_pytorch_tanh")
        file.only("hidden_act", ("silu", "swish"), "silu", "the decoder's gated feed-forward network has SiLU")
        return "swiglu"


def _any_bias(model: ModelConfig, layers: tuple[str, ...]) -> bool:
    return any(_has_bias(model, layer) for layer in layers)


def _has_bias(model: ModelConfig, layer: str) -> bool:
    if layer == "output":
        return model.attention_bias == "all"
    return model.attention_bias != "none" if layer in ("query", "key", "value") else model.ffn_bias


def _width(model: ModelConfig, layer: str) -> int:
    """Output width of a linear layer."""
    if layer == "query":
        return model.n_heads * model.head_width
    if layer in ("key", "value"):
        return model.n_kv_heads * model.head_width
    return model.d_ff if layer in ("gate", "up") else model.d_model
