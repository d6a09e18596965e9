"""Declaration of a family: the models it holds, its tensors, and its config.json in both directions.

One declaration serves export and import: each tensor of a file is an `HFTensor`, and both conversions follow from it.
Names hold `{n}` for the number of a block. Nothing here needs torch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.config_file import ConfigFile


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a file: our parameters `sources`, concatenated along their first dimension, then `transposed`.

    A tensor without sources is a constant of `shape` that the family has and our model does not: zeros for a bias,
    sinusoids for a table of positions.
    """

    name: str
    sources: tuple[str, ...] = ()
    transposed: bool = False
    fill: Literal["zeros", "sinusoids"] | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """An architecture of transformers. `model_type` and `architecture` are its names in config.json.

    incompatibilities   a sentence for each setting of a model that the family lacks; empty if it can hold the model
    tensors             all tensors of a file, in file order
    to_json             the family's part of config.json, for a context of N tokens
    from_json           values of our `model` section; adds to the problems and notes of the file
    context             positions of an exported model that was trained on sequences of N tokens
    ignored             regular expressions for tensors of other people's files that are no parameters: buffers
    prefix              prefix of tensor names that some files leave out
    """

    model_type: str
    architecture: str
    incompatibilities: Callable[[ModelConfig], list[str]]
    tensors: Callable[[ModelConfig], list[HFTensor]]
    to_json: Callable[[ModelConfig, int], dict[str, Any]]
    from_json: Callable[[ConfigFile], dict[str, Any]]
    context: Callable[[ModelConfig, int], int] = lambda model, seq_len: seq_len
    ignored: tuple[str, ...] = ()
    prefix: str = ""


def unsupported_settings(model: ModelConfig, name: str, **allowed: tuple[Any, ...]) -> list[str]:
    """A sentence for each setting of the model that is not among those of the family `name`."""
    return [
        f"model.{key}={_shown(getattr(model, key))}: {name} has {' or '.join(map(_shown, values))} only"
        for key, values in allowed.items()
        if getattr(model, key) not in values
    ]


def heads_span_width(model: ModelConfig, name: str) -> list[str]:
    """A sentence unless n_heads * head_dim is d_model."""
    if model.n_heads * model.head_width == model.d_model:
        return []
    return [f"model.head_dim={model.head_width}: {name} has d_model / n_heads = {model.d_model}/{model.n_heads} only"]


def heads_divide_width(model: ModelConfig, name: str) -> list[str]:
    """A sentence unless d_model is a multiple of n_heads."""
    if model.d_model % model.n_heads == 0:
        return []
    return [f"model.d_model={model.d_model}: {name} has a multiple of n_heads={model.n_heads} only"]


def full_rotation(model: ModelConfig, name: str) -> list[str]:
    """A sentence if rotary positions rotate only some channels of each head."""
    if model.positions != "rope" or model.rotary_width == model.head_width:
        return []
    return [f"model.rope_fraction={model.rope_fraction:g}: {name} rotates all channels of a head"]


def weight(layer: str, *sources: str, transposed: bool = False) -> HFTensor:
    """The weight of a layer; all names without `.weight`."""
    return HFTensor(f"{layer}.weight", tuple(f"{source}.weight" for source in sources), transposed)


def bias(layer: str, *sources: str, present: bool, width: int) -> HFTensor:
    """The bias of a layer; `width` zeros if our model has none."""
    if present:
        return HFTensor(f"{layer}.bias", tuple(f"{source}.bias" for source in sources))
    return HFTensor(f"{layer}.bias", fill="zeros", shape=(width,))


def norm(model: ModelConfig, layer: str, source: str) -> list[HFTensor]:
    """Weight of a norm. LayerNorm of transformers always has a bias as well."""
    if model.norm == "rmsnorm":
        return [weight(layer, source)]
    return [weight(layer, source), bias(layer, source, present=model.norm_bias, width=model.d_model)]


def head(model: ModelConfig) -> list[HFTensor]:
    """The output layer; no tensor if it is tied to the embedding."""
    return [] if model.tie_embeddings else [weight("lm_head", "head")]


def in_each_block(model: ModelConfig, tensors: Iterable[HFTensor]) -> Iterator[HFTensor]:
    """The tensors of each block: `{n}` in their names becomes its number."""
    tensors = list(tensors)
    for n in range(model.n_layers):
        number = str(n)
        for tensor in tensors:
            sources = tuple(source.replace("{n}", number) for source in tensor.sources)
            yield replace(tensor, name=tensor.name.replace("{n}", number), sources=sources)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
