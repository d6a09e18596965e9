"""A mistake in any family's declaration fails the verification, and nothing is published."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema import ModelConfig
from pretrain.convert import export_hf as hf
from pretrain.convert.export_hf import export_hf
from pretrain.convert.families.choose import FAMILIES
from pretrain.convert.families.family import Family, HFTensor
from pretrain.convert.files.weight_files import expected_shapes, stored_shape
from pretrain.errors import ExportError
from tests.support.exportable_models import FULLEST
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source, small_model

Rows = list[HFTensor]
LOGITS, NAMES = "logits of the exported model differ", "did not load the exported weights cleanly"
BY_TYPE = {family.model_type: family for family in FAMILIES}
EVERY = tuple(BY_TYPE)


def block_rows(rows: Rows) -> Rows:
    return [row for row in rows if row.sources and row.sources[0].startswith("blocks.1.")]


def swapped(first: HFTensor, second: HFTensor, rows: Rows) -> Rows:
    names = {first.name: second.name, second.name: first.name}
    return [replace(row, name=names.get(row.name, row.name)) for row in rows]


def norms_exchanged(rows: Rows, _model: ModelConfig) -> Rows:
    first, second = [
        row
        for row in block_rows(rows)
        if row.sources[0].endswith(("attention_norm.weight", "feed_forward_norm.weight"))
    ]
    return swapped(first, second, rows)


def sources_exchanged(rows: Rows, _model: ModelConfig) -> Rows:
    """Key and value, which are one tensor in GPT-2."""
    other = {"blocks.1.attention.key.weight": "value", "blocks.1.attention.value.weight": "key"}
    return [
        replace(row, sources=tuple(f"blocks.1.attention.{other[p]}.weight" if p in other else p for p in row.sources))
        for row in rows
    ]


def transposed(rows: Rows, model: ModelConfig) -> Rows:
    """A square matrix, whose shape does not show it; where there is none, the first matrix."""
    shapes = expected_shapes(model)
    matrices = [row for row in block_rows(rows) if len(stored_shape(row, shapes)) == 2]
    square = [row for row in matrices if len(set(stored_shape(row, shapes))) == 1] or matrices[1:]
    return [replace(row, transposed=not row.transposed) if row is square[0] else row for row in rows]


def bias_forgotten(rows: Rows, model: ModelConfig) -> Rows:
    """Zeros in place of a bias that the model has."""
    biases = [row for row in block_rows(rows) if row.name.endswith(".bias") and row.sources]
    shape = stored_shape(biases[-1], expected_shapes(model))
    return [HFTensor(row.name, fill="zeros", shape=shape) if row is biases[-1] else row for row in rows]


def one_missing(rows: Rows, _model: ModelConfig) -> Rows:
    lost = block_rows(rows)[2]
    return [row for row in rows if row is not lost]


def one_more(rows: Rows, _model: ModelConfig) -> Rows:
    return [*rows, replace(rows[0], name="model.more.weight")]


def another_name(rows: Rows, _model: ModelConfig) -> Rows:
    lost = block_rows(rows)[0]
    return [replace(row, name=f"{row.name}_") if row is lost else row for row in rows]


def another_shape(rows: Rows, model: ModelConfig) -> Rows:
    """Two matrices of different shapes exchanged."""
    shapes = expected_shapes(model)
    matrices = [row for row in block_rows(rows) if len(stored_shape(row, shapes)) == 2]
    other = next(row for row in matrices if stored_shape(row, shapes) != stored_shape(matrices[0], shapes))
    return swapped(matrices[0], other, rows)


TABLES: dict[str, tuple[Callable[[Rows, ModelConfig], Rows], str]] = {
    "norms exchanged": (norms_exchanged, LOGITS),
    "key and value exchanged": (sources_exchanged, LOGITS),
    "a matrix transposed": (transposed, f"{LOGITS}|{NAMES}"),
    "a bias forgotten": (bias_forgotten, LOGITS),
    "a tensor missing": (one_missing, NAMES),
    "a tensor too many": (one_more, NAMES),
    "a tensor under another name": (another_name, NAMES),
    "a tensor where one of another shape belongs": (another_shape, NAMES),
}


def export_mistaken(family: Family, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message with which the export ends."""
    monkeypatch.setattr(hf, "choose_family", lambda _: family)
    source = memory_source(tokenizer, small_model(init_std=0.1, **FULLEST[family.model_type]))
    with pytest.raises(ExportError) as caught:
        export_hf(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("mistake", TABLES)
def test_a_mistake_in_the_table_of_tensors_is_not_published(
    kind: str, mistake: str, sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = TABLES[mistake]
    family = BY_TYPE[kind]
    mistaken = replace(family, tensors=lambda model: change(family.tensors(model), model))
    assert mistaken.tensors(small_model(**FULLEST[kind])) != family.tensors(small_model(**FULLEST[kind]))
    found = export_mistaken(mistaken, sentencepiece_model, tmp_path, monkeypatch)
    assert any(part in found for part in message.split("|")), found


def rotation(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same change under the names of both generations."""

    def change(values: dict[str, Any]) -> dict[str, Any]:
        scaling = values["rope_scaling"] and values["rope_scaling"] | {
            k: v for k, v in changes.items() if k != "rope_theta"
        }
        values |= {"rope_scaling": scaling, "rope_parameters": values["rope_parameters"] | changes}
        return values | {key: value for key, value in changes.items() if key in ("rope_theta", "partial_rotary_factor")}

    return change


CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "llama: theta off by a hundredth": ("llama", rotation(rope_theta=10_100.0)),
    "llama: epsilon": ("llama", lambda values: values | {"rms_norm_eps": 1e-3}),
    "llama: half as many key heads": ("llama", lambda values: values | {"num_key_value_heads": 1}),
    "qwen3: theta off by a hundredth": ("qwen3", rotation(rope_theta=10_100.0)),
    "qwen3: no biases": ("qwen3", lambda values: values | {"attention_bias": False}),
    "olmo2: the factor of the rotation": ("olmo2", rotation(factor=4.5)),
    "gpt2: the exact form of GELU": ("gpt2", lambda values: values | {"activation_function": "gelu"}),
    "gpt2: epsilon": ("gpt2", lambda values: values | {"layer_norm_epsilon": 1e-4}),
    "gpt2: two heads in place of four": ("gpt2", lambda values: values | {"n_head": 2}),
    "gpt2: tied": ("gpt2", lambda values: values | {"tie_word_embeddings": True}),
    "starcoder2: the exact form of GELU": ("starcoder2", lambda values: values | {"hidden_act": "gelu"}),
    "starcoder2: theta off by a hundredth": ("starcoder2", rotation(rope_theta=10_100.0)),
    "stablelm: a quarter of each head": ("stablelm", rotation(partial_rotary_factor=0.25)),
    "stablelm: parallel sub-layers": ("stablelm", lambda values: values | {"use_parallel_residual": True}),
}


@pytest.mark.parametrize(("kind", "change"), CONFIGS.values(), ids=CONFIGS)
def test_a_mistake_in_config_json_is_not_published(
    kind: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    sentencepiece_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = BY_TYPE[kind]
    mistaken = replace(family, to_json=lambda model, context: change(family.to_json(model, context)))
    export_mistaken(mistaken, sentencepiece_model, tmp_path, monkeypatch)
