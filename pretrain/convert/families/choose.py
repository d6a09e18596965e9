"""Choice of the stock architecture for a model, and of the model for a config.json.

ours → theirs    choose_family: the first family without incompatibilities; else those of the nearest families
theirs → ours    read_config: by model_type; collects every value that the decoder cannot compute
"""

from dataclasses import replace
from typing import Any

from pretrain.config.build import build
from pretrain.config.check import find_conflicts
from pretrain.config.schema import Config, DataConfig, ModelConfig
from pretrain.convert.families.config_file import ConfigFile, shown
from pretrain.convert.families.family import Family
from pretrain.convert.families.gpt2 import GPT2
from pretrain.convert.families.llama_table import LLAMA, OLMO2, QWEN3, STABLELM, STARCODER2
from pretrain.errors import DataError, UserError

FAMILIES = (LLAMA, QWEN3, OLMO2, GPT2, STARCODER2, STABLELM)
NEAREST = 3  # families that the message lists if none fits


def choose_family(model: ModelConfig) -> Family:
    """The family that holds the model. Raises UserError with the incompatibilities of the nearest families."""
    incompatibilities = {family.model_type: family.incompatibilities(model) for family in FAMILIES}
    for family in FAMILIES:
        if not incompatibilities[family.model_type]:
            return family
    nearest = sorted(incompatibilities, key=lambda name: len(incompatibilities[name]))[:NEAREST]
    fewest = len(incompatibilities[nearest[0]])
    lines = [
        f"  {name}\n" + "\n".join(f"    - {text}" for text in incompatibilities[name])
        for name in nearest
        if len(incompatibilities[name]) <= fewest + 1
    ]
    raise UserError(
        "no stock architecture of transformers can hold this model; incompatible with the nearest:\n"
        + "\n".join(lines),
        hint="pretrain generate, evaluate and inspect read the checkpoint itself",
    )


def config_json(
    family: Family, model: ModelConfig, seq_len: int, dtype: str, tokens: dict[str, int | None]
) -> dict[str, Any]:
    """Contents of config.json.

    `seq_len` is the training length, `dtype` transformers' name of the stored type (`float32`, `bfloat16`); `tokens` are
    ids such as `bos_token_id`.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.to_json(model, family.context(model, seq_len)),
        **tokens,
        "torch_dtype": dtype,  # transformers 4
        "dtype": dtype,  # transformers 5
    }


def read_config(values: dict[str, Any], where: str) -> tuple[Family, Config, list[str]]:
    """The family of a config.json, a Config with our `model` section, and notes on small differences.

    `data.seq_len` is the context of the file. Raises DataError with all problems; its message begins with `where`.
    """
    kinds = {family.model_type: family for family in FAMILIES}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise DataError(
            f"{where}: model_type={shown(kind)} cannot be imported",
            hint=f"one of {', '.join(kinds)}",
        )
    family, file = kinds[kind], ConfigFile(values)
    model = family.from_json(file)
    _check_code(file, family)
    problems = file.problems
    if not problems:
        # A context may be shorter than the original one that RoPE scaling refers to.
        length = max(model["max_seq_len"], model.get("rope_original_seq_len", 0))
        config = build({"model": {**model, "max_seq_len": length}}, problems)
        config = replace(config, data=DataConfig(seq_len=model["max_seq_len"]))
        problems += find_conflicts(config) if not problems else []
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{where}: the decoder cannot compute this {kind} model:\n{listed}")
    return family, config, file.notes


def _check_code(file: ConfigFile, family: Family) -> None:
    architectures = file.values.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        file.problems.append(f"architectures={shown(architectures)}: only {family.architecture} can be imported")
    if file.values.get("quantization_config") is not None:
        file.problems.append("quantization_config: only fp32, bf16 and fp16 weights can be imported")
    if file.values.get("auto_map") is not None:
        file.problems.append("auto_map: the model has code of its own, which an import never runs")
