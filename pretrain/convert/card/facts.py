"""Facts of a model card as plain values; export_hf.py collects them, model_card.py formats them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.config.load import config_text
from pretrain.config.schema import Config, ModelConfig
from pretrain.convert.card.curve import History
from pretrain.convert.files.weight_files import WeightSource
from pretrain.convert.verify.logits import LogitProof
from pretrain.convert.verify.token_ids import TokenizerProof


@dataclass(frozen=True)
class CardFacts:
    """`name` is the folder's; `family` transformers' model_type, `architecture` its class.

    `step` counts optimizer steps and `tokens` the targets behind the weights, `context` the positions that config.json
    has. `padding` is the spelling of the padding token, None for a tokenizer without one. `ledger` has tokens and epochs by
    source, empty if unknown. `base_model` is the imported model that training started from, as a name on the Hub or a path;
    `averaged` are the steps whose weights were averaged.
    """

    name: str
    config: Config
    family: str
    architecture: str
    step: int
    tokens: int
    parameters: int
    dtype: str
    context: int
    control_symbols: Sequence[str]
    logits: LogitProof
    tokenizer: TokenizerProof
    padding: str | None
    ledger: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    history: History | None = None
    base_model: str | None = None
    averaged: Sequence[int] = ()

    @property
    def initial_weights(self) -> str | None:
        """Name of the initial weights, without local folders; None for random initialization."""
        start = self.config.run.init_from
        return self.base_model or (Path(start).name if start else None)


def ledger_of(source: WeightSource) -> dict[str, dict[str, float]]:
    """Tokens and epochs by source, from the state of a checkpoint; empty for other weights."""
    state: Any = getattr(source, "state", None)
    ledger = state.get("ledger") if isinstance(state, Mapping) else None
    entries = ledger.items() if isinstance(ledger, Mapping) else ()
    return {
        str(name): {unit: float(entry[unit]) for unit in ("tokens", "epochs")}
        for name, entry in entries
        if isinstance(entry, Mapping) and all(isinstance(entry.get(unit), int | float) for unit in ("tokens", "epochs"))
    }


def describe_shape(model: ModelConfig) -> list[str]:
    """Normalization, positions, attention and feed-forward network in words."""
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm with biases" if model.norm_bias else "LayerNorm"}[model.norm]
    place = {"pre": "before", "post": "after"}[model.norm_position]
    heads = f"{model.n_heads} heads"
    if model.n_kv_heads != model.n_heads:
        heads = f"{model.n_heads} query and {model.n_kv_heads} key/value heads"
    normalized = {
        "none": "",
        "head": ", queries and keys normalized by head",
        "full": ", queries and keys normalized over all heads",
    }[model.qk_norm]
    biases = {"none": "", "qkv": ", biases of queries, keys and values", "all": ", biases"}[model.attention_bias]
    ffn = {"swiglu": "SwiGLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU"}[model.ffn]
    return [
        f"{norm} {place} each sub-layer",
        _positions(model),
        f"{heads} of width {model.head_width}{normalized}{biases}",
        f"{ffn}{' with biases' if model.ffn_bias else ''}",
    ]


def _positions(model: ModelConfig) -> str:
    if model.positions != "rope":
        return f"{model.positions} positions"
    part = f" of {model.rotary_width} channels a head" if model.rotary_width != model.head_width else ""
    longer = f", scaled by {model.rope_factor:g} ({model.rope_scaling})" if model.rope_scaling != "none" else ""
    return f"rotary positions{part} with theta {model.rope_theta:g}{longer}"


def recipe(config: Config) -> str:
    """The configuration as YAML, without local paths, addresses and DeepSpeed options, for publication."""
    config = replace(
        config,
        run=replace(config.run, dir="", init_from=None),
        data=replace(
            config.data,
            train={name: replace(source, path="") for name, source in config.data.train.items()},
            valid={name: replace(source, path="") for name, source in config.data.valid.items()},
            tokenizer=None,
            store=replace(config.data.store, cache_dir=None),
        ),
        checkpoint=replace(config.checkpoint, upload=None),
        engine=replace(config.engine, deepspeed={}),
    )
    head = "# The configuration of the training, without paths, addresses and native DeepSpeed options.\n"
    return head + config_text(config)
