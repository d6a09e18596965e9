"""Rotary positions in config.json, in the names of both generations.

    transformers 4    rope_theta, rope_scaling = null or {rope_type, factor, …}, partial_rotary_factor
    transformers 5    rope_parameters = {rope_theta, rope_type, factor, …, partial_rotary_factor}

Each generation silently falls back to defaults (theta = 10,000) if its own key is missing, so exports write both. Imports
read either; if a file has both, they must agree.
"""

import math
from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.config_file import ConfigFile, is_number, shown

ORIGINAL = "original_max_position_embeddings"
# Keys of each type besides theta and the type itself, with our names.
TYPES: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        ORIGINAL: "rope_original_seq_len",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        "factor": "rope_factor",
        ORIGINAL: "rope_original_seq_len",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
    },
}


def rope_json(model: ModelConfig, *, partial: bool = False) -> dict[str, Any]:
    """The keys of both generations; with `partial` also the fraction of channels that is rotated."""
    kind = "default" if model.rope_scaling == "none" else model.rope_scaling
    scaling = {"rope_type": kind, **{key: getattr(model, ours) for key, ours in TYPES[kind].items()}}
    fraction = {"partial_rotary_factor": model.rope_fraction} if partial else {}
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": None if kind == "default" else scaling,
        "rope_parameters": {**scaling, "rope_theta": model.rope_theta, **fraction},
        **fraction,
    }


def read_rope(file: ConfigFile, positions: int, *, fraction: float | None = None) -> dict[str, Any]:
    """Values of our `model` section. `positions` is the file's context in tokens.

    `fraction` is the family's default for the rotated fraction of channels; None if it rotates all channels.
    """
    found = _merged(file)
    kind = found.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in TYPES:
        file.problems.append(f"rope_type={shown(kind)}: the decoder has {', '.join(TYPES)}")
        return {}
    values: dict[str, Any] = {"rope_theta": _number(file, "rope_theta", found.pop("rope_theta", 10_000.0))}
    part = found.pop("partial_rotary_factor", 1.0 if fraction is None else fraction)
    if fraction is not None:
        values["rope_fraction"] = _number(file, "partial_rotary_factor", part)
    elif part != 1:
        file.problems.append(
            f"partial_rotary_factor={shown(part)}: transformers rotates all channels in this architecture"
        )
    if kind == "default":
        found.pop(ORIGINAL, None)  # transformers writes it, but does not use it for this type
    else:
        values |= _scaling(file, kind, found, positions)
    file.problems += [f"{key}={shown(value)}: not supported for rope_type={kind}" for key, value in found.items()]
    return values


def _merged(file: ConfigFile) -> dict[str, Any]:
    """All keys that are not null, from all places; adds a problem for two that disagree."""
    merged: dict[str, Any] = {}
    top = {key: file.values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    if file.values.get("rope_scaling"):
        top[ORIGINAL] = file.values.get(ORIGINAL)
    for where, group in (
        ("rope_theta, partial_rotary_factor", top),
        *((key, file.values.get(key)) for key in ("rope_scaling", "rope_parameters")),
    ):
        if group is None:
            continue
        if not isinstance(group, dict) or any(isinstance(value, dict) for value in group.values()):
            file.problems.append(f"{where}={shown(group)}: the decoder has one rotation for all layers")
            continue
        for key, value in group.items():
            name = "rope_type" if key == "type" else key
            if value is not None and merged.setdefault(name, value) != value:
                file.problems.append(f"{name} is {shown(merged[name])} in one place, {shown(value)} in another")
    return merged


def _scaling(file: ConfigFile, kind: str, found: dict[str, Any], positions: int) -> dict[str, Any]:
    """Values of one scaling type; removes the keys it reads from `found`."""
    values: dict[str, Any] = {"rope_scaling": kind}
    for key, ours in TYPES[kind].items():
        if key == ORIGINAL:
            length = found.pop(key, positions)
            if type(length) is not int or length < 1:
                file.problems.append(f"{key}={shown(length)} is not an integer above 0")
            values[ours] = length
        elif key in found:
            values[ours] = _number(file, key, found.pop(key))
        elif key.startswith("beta_"):
            values[ours] = {"beta_fast": 32.0, "beta_slow": 1.0}[key]
        else:
            file.problems.append(f"{key} is missing for rope_type={kind}")
    if kind == "yarn":
        # Accepted if they are what the decoder computes anyway.
        scale = 0.1 * math.log(max(1.0, values.get("rope_factor", 1.0))) + 1.0
        if found.get("attention_factor") == scale:
            del found["attention_factor"]
        if found.get("truncate") is True:
            del found["truncate"]
    return values


def _number(file: ConfigFile, key: str, value: Any) -> float:
    if is_number(value):
        return float(value)
    file.problems.append(f"{key}={shown(value)} is not a number")
    return 1.0
