"""Which stock architecture holds a model, and which model a config.json describes.

ours → theirs    choose_family: the first one without a reason against it; else all reasons of the nearest
theirs → ours    read_config: by its model_type, with every value that the decoder has no place for
"""

from dataclasses import replace
from typing import Any

from pretrain.config.build import build
from pretrain.config.check import find_conflicts
from pretrain.config.schema import Config, DataConfig, ModelConfig
from pretrain.convert.families.config_file import ConfigFile, shown
from pretrain.convert.families.family import Family
from pretrain.convert.families.gpt2 import GPT2
from pretrain.convert.families.llama import LLAMA
from pretrain.convert.families.olmo2 import OLMO2
from pretrain.convert.families.qwen3 import QWEN3
from pretrain.convert.families.stablelm import STABLELM
from pretrain.convert.families.starcoder2 import STARCODER2
from pretrain.errors import DataError, UserError

FAMILIES = (LLAMA, QWEN3, OLMO2, GPT2, STARCODER2, STABLELM)
NEAREST = 3  # so many families are named where none fits


def choose_family(model: ModelConfig) -> Family:
    """The family that holds the model. Raises UserError with what is in the way of the nearest ones."""
    reasons = {family.model_type: family.reasons(model) for family in FAMILIES}
    for family in FAMILIES:
        if not reasons[family.model_type]:
            return family
    nearest = sorted(reasons, key=lambda name: len(reasons[name]))[:NEAREST]
    fewest = len(reasons[nearest[0]])
    lines = [
        f"  {name}\n" + "\n".join(f"    - {reason}" for reason in reasons[name])
        for name in nearest
        if len(reasons[name]) <= fewest + 1
    ]
    raise UserError(
        "no stock architecture of transformers can hold this model; in the way of the nearest:\n" + "\n".join(lines),
        hint="the checkpoint itself stays usable: pretrain generate, evaluate and inspect read it",
    )


def config_json(
    family: Family, model: ModelConfig, seq_len: int, dtype: str, tokens: dict[str, int | None]
) -> dict[str, Any]:
    """Contents of config.json.

    `seq_len` is the length that was trained, `dtype` transformers' name of the stored type (`float32`, `bfloat16`), under
    the names of both generations; `tokens` are ids such as `bos_token_id`.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.to_json(model, family.context(model, seq_len)),
        **tokens,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def read_config(values: dict[str, Any], where: str) -> tuple[Family, Config, list[str]]:
    """The family of a config.json, a Config with our `model` section, and notes on what is not quite the same.

    `data.seq_len` is the context of the file. Raises DataError, which begins with `where`, with every reason at once.
    """
    kinds = {family.model_type: family for family in FAMILIES}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise DataError(
            f"{where}: model_type={shown(kind)} is none that the decoder can compute",
            hint=f"these can be imported: {', '.join(kinds)}",
        )
    family, file = kinds[kind], ConfigFile(values)
    model = family.from_json(file)
    _refuse_other_code(file, family)
    problems = file.problems
    if not problems:
        # A context may be shorter than the one before that its rotary positions were stretched from.
        length = max(model["max_seq_len"], model.get("rope_original_seq_len", 0))
        config = build({"model": {**model, "max_seq_len": length}}, problems)
        config = replace(config, data=DataConfig(seq_len=model["max_seq_len"]))
        problems += find_conflicts(config) if not problems else []
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{where}: the decoder cannot compute what this {kind} model does:\n{listed}")
    return family, config, file.notes


def _refuse_other_code(file: ConfigFile, family: Family) -> None:
    architectures = file.values.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        file.problems.append(
            f"architectures={shown(architectures)}: only {family.architecture} is a language model here"
        )
    if file.values.get("quantization_config") is not None:
        file.problems.append("quantization_config: the weights are quantized; only fp32, bf16 and fp16 are read")
    if file.values.get("auto_map") is not None:
        file.problems.append("auto_map: the model has code of its own, which is never run here")
