"""What a family declares: which models it holds, what its tensors are made of, and its config.json in both directions.

One declaration serves export and import: each tensor of a file is a `HFTensor`, and both ways follow from it. Names hold
`{n}` where a block's number belongs. Nothing here needs torch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.config_file import ConfigFile


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a file: `parts`, parameters of ours, one after the other along their first dimension.

    `transposed` then exchanges the two dimensions. One without parts is a `fill` of `shape`, for what the family has and
    our model has not: zeros for a bias, sinusoids for a table of positions.
    """

    name: str
    parts: tuple[str, ...] = ()
    transposed: bool = False
    fill: Literal["zeros", "sinusoids"] | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """An architecture. `model_type` and `architecture` are its names in config.json.

    reasons     every setting of a model that it has no place for, a sentence each; empty where it can hold the model
    tensors     all tensors of a file, in their order
    to_json     its part of config.json, for a context of so many tokens
    from_json   values of our `model` section; problems and notes are left in the file
    context     the positions that a file of the model has, where it trained on so many tokens
    ignored     tensors in files of others that hold nothing: buffers, as regular expressions
    prefix      the beginning of names that some files leave out
    """

    model_type: str
    architecture: str
    reasons: Callable[[ModelConfig], list[str]]
    tensors: Callable[[ModelConfig], list[HFTensor]]
    to_json: Callable[[ModelConfig, int], dict[str, Any]]
    from_json: Callable[[ConfigFile], dict[str, Any]]
    context: Callable[[ModelConfig, int], int] = lambda model, seq_len: seq_len
    ignored: tuple[str, ...] = ()
    prefix: str = ""


def mismatches(model: ModelConfig, name: str, **allowed: tuple[Any, ...]) -> list[str]:
    """A sentence for each setting of the model that is not among those that the family `name` has."""
    return [
        f"model.{key}={_shown(getattr(model, key))}: {name} has {' or '.join(map(_shown, values))} only"
        for key, values in allowed.items()
        if getattr(model, key) not in values
    ]


def heads_fill_the_width(model: ModelConfig, name: str) -> list[str]:
    """A sentence where the heads together are not as wide as the model."""
    if model.n_heads * model.head_width == model.d_model:
        return []
    return [f"model.head_dim={model.head_width}: {name} has d_model / n_heads = {model.d_model}/{model.n_heads} only"]


def whole_rotation(model: ModelConfig, name: str) -> list[str]:
    """A sentence where rotary positions turn a part of each head."""
    if model.positions != "rope" or model.rotary_width == model.head_width:
        return []
    return [f"model.rope_fraction={model.rope_fraction:g}: {name} turns whole heads only"]


def matrix(stored: str, *parts: str, transposed: bool = False) -> HFTensor:
    """The weight of a linear layer, named without `.weight`."""
    return HFTensor(f"{stored}.weight", tuple(f"{part}.weight" for part in parts), transposed)


def bias(stored: str, *parts: str, present: bool, width: int) -> HFTensor:
    """The bias of a layer, `width` zeros where our model has none."""
    if present:
        return HFTensor(f"{stored}.bias", tuple(f"{part}.bias" for part in parts))
    return HFTensor(f"{stored}.bias", fill="zeros", shape=(width,))


def in_each_block(model: ModelConfig, rows: Iterable[HFTensor]) -> Iterator[HFTensor]:
    """The rows with the number of each block in their names."""
    rows = list(rows)
    for n in range(model.n_layers):
        number = str(n)
        for row in rows:
            parts = tuple(part.replace("{n}", number) for part in row.parts)
            yield replace(row, name=row.name.replace("{n}", number), parts=parts)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
