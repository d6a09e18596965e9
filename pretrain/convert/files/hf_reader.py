"""A Hugging Face directory as a source of weights: somebody else's model, or an export of our own.

config.json  → family, ModelConfig        families/choose.py: every value that the decoder has no place for, at once
headers      → names, shapes, types       held against what the family says: missing, surplus, misshapen, quantized
tensors      → our parameters             renamed, cut apart and transposed back, on demand
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import Config
from pretrain.convert.families.choose import read_config
from pretrain.convert.families.family import Family, HFTensor
from pretrain.convert.files.hf_directory import CONFIG, inside, model_name, read_json
from pretrain.convert.files.stored_files import StoredTensor, load_tensor, shape_of, stored_tensors, type_of
from pretrain.convert.files.tokenizer_files import find_tokenizer
from pretrain.convert.files.weight_files import expected_shapes, stored_shape
from pretrain.errors import DataError
from pretrain.storage.safetensors import DTYPES
from tokenizer.models.base import COMPANION_FILES, FALLBACK_FILES, SENTENCEPIECE_MODEL, TOKENIZER_JSON

NAMES_LISTED = 5


class TensorPlace(NamedTuple):
    """Rows [start, start + rows) of a tensor of the files, after it is transposed back."""

    stored: HFTensor
    start: int
    rows: int


class HfSource:
    """A WeightSource. `notes` say what the decoder does not quite compute as the directory's own code.

    Raises DataError for a directory that is not one, and with every reason why the decoder cannot hold its model.
    """

    step = 0
    tokens = 0

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise DataError(f"{directory} is not a directory")
        values = read_json(directory, CONFIG)
        self.directory = directory
        self.family, self.config, self.notes = read_config(values, str(directory / CONFIG))
        self.state: dict[str, Any] = {"imported_from": model_name(directory, values)}
        self.shapes: Mapping[str, tuple[int, ...]] = expected_shapes(self.config.model)
        table = self.family.tensors(self.config.model)
        self._stored = _held_against(stored_tensors(directory), table, self.shapes, self.family, self.config, directory)
        self._places = _places(table, self.shapes)

    @property
    def tokenizer(self) -> Path | None:
        """The file to load it from; None where the directory has none. Raises DataError for one that cannot be used."""
        for name in (TOKENIZER_JSON, SENTENCEPIECE_MODEL, *COMPANION_FILES, *FALLBACK_FILES):
            if (self.directory / name).is_file():
                inside(self.directory, name)  # they are copied: a link would publish what it points to
        if not any((self.directory / name).is_file() for name in (TOKENIZER_JSON, SENTENCEPIECE_MODEL)):
            return None
        return find_tokenizer(self.directory)

    def tensor(self, name: str) -> Tensor:
        """One of our parameters, fp32. Raises DataError where an element is not finite or the file cannot be read."""
        stored, start, rows = self._places[name]
        tensor = load_tensor(self._stored[stored.name], f"{self.directory}: {stored.name}")
        whole = tensor.t() if stored.transposed else tensor
        part = whole[start : start + rows]
        return (
            part.contiguous() if part.numel() == tensor.numel() else part.clone(memory_format=torch.contiguous_format)
        )

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Fill the flat fp32 tensor `out` with a parameter's elements from `start` on."""
        out.copy_(self.tensor(name).view(-1)[start : start + out.numel()])


def _places(table: list[HFTensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorPlace]:
    places = {}
    for stored in table:
        start = 0
        for part in stored.parts:
            places[part] = TensorPlace(stored, start, shapes[part][0])
            start += shapes[part][0]
    return places


def _held_against(
    found: dict[str, StoredTensor],
    table: list[HFTensor],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    config: Config,
    directory: Path,
) -> dict[str, StoredTensor]:
    """The tensors that the family has, under its names. Raises DataError unless there are these and no others."""
    expected = {stored.name: stored_shape(stored, shapes) for stored in table}
    held = {_full_name(name, expected, family): tensor for name, tensor in found.items()}
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    held = {name: tensor for name, tensor in held.items() if not ignored.fullmatch(name)}
    if config.model.tie_embeddings and "lm_head.weight" in held:
        _refuse_other_head(held, table[0].name, directory)
    problems = [
        *(f"missing: {name} {shape}" for name, shape in expected.items() if name not in held),
        *(f"unknown to {family.model_type}: {name} {shape_of(held[name])}" for name in held if name not in expected),
        *(
            f"{name} is {shape_of(held[name])}, config.json says {shape}"
            for name, shape in expected.items()
            if name in held and shape_of(held[name]) != shape
        ),
        *(
            f"{name} is stored as {type_of(held[name])}; read are {', '.join(DTYPES)}"
            for name in expected
            if name in held and type_of(held[name]) not in DTYPES
        ),
    ]
    if problems:
        more = f"\n  - and {len(problems) - NAMES_LISTED} more" if len(problems) > NAMES_LISTED else ""
        listed = "\n".join(f"  - {problem}" for problem in problems[:NAMES_LISTED])
        raise DataError(f"{directory}: the weights do not fit config.json:\n{listed}{more}")
    return held


def _full_name(name: str, expected: Mapping[str, Any], family: Family) -> str:
    """Some files leave out the prefix; transformers adds it."""
    full = f"{family.prefix}{name}"
    known = full in expected or any(re.fullmatch(pattern, full) for pattern in family.ignored)
    return full if name not in expected and known else name


def _refuse_other_head(held: dict[str, StoredTensor], embedding: str, directory: Path) -> None:
    """A tied head may be stored as well, where it is the same; then it is dropped."""
    head, tokens = held["lm_head.weight"], held.get(embedding)
    if tokens is None or shape_of(head) != shape_of(tokens):
        return
    if {type_of(head), type_of(tokens)} <= set(DTYPES) and torch.equal(
        load_tensor(head, "lm_head.weight"), load_tensor(tokens, embedding)
    ):
        del held["lm_head.weight"]
        return
    raise DataError(
        f"{directory}: lm_head.weight is not {embedding}, and config.json says tie_word_embeddings=true",
        hint="set tie_word_embeddings to false in config.json where the head is one of its own",
    )
