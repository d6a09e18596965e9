"""A Hugging Face directory as a source of weights: another project's model, or one of our exports.

config.json  → family, ModelConfig        families/choose.py: collects every value that the decoder cannot compute
headers      → names, shapes, types       compared with the family's: missing, unknown, wrong shape, quantized
tensors      → our parameters             renamed, split and transposed back, on demand
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
from pretrain.convert.files.weight_files import expected_shapes, listed, stored_shape
from pretrain.errors import DataError
from pretrain.storage.safetensors import DTYPES
from tokenizer.models.base import COMPANION_FILES, FALLBACK_FILES, SENTENCEPIECE_MODEL, TOKENIZER_JSON


class TensorPlace(NamedTuple):
    """Rows [start, start + rows) of a tensor of the files, after transposing it back."""

    tensor: HFTensor
    start: int
    rows: int


class HfSource:
    """A WeightSource. `notes` list small numerical differences from the directory's own code.

    Raises DataError if it is no such directory, and with all problems if the decoder cannot hold its model.
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
        self._stored = _matched(stored_tensors(directory), table, self.shapes, self.family, self.config, directory)
        self._places = _places(table, self.shapes)

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer file; None if the directory has none. Raises DataError if it cannot be used."""
        for name in (TOKENIZER_JSON, SENTENCEPIECE_MODEL, *COMPANION_FILES, *FALLBACK_FILES):
            if (self.directory / name).is_file():
                # Refuses links: these files are copied, so a link would publish its target.
                inside(self.directory, name)
        if not any((self.directory / name).is_file() for name in (TOKENIZER_JSON, SENTENCEPIECE_MODEL)):
            return None
        return find_tokenizer(self.directory)

    def tensor(self, name: str) -> Tensor:
        """One of our parameters, fp32. Raises DataError if an element is not finite or the file cannot be read."""
        hf_tensor, start, rows = self._places[name]
        tensor = load_tensor(self._stored[hf_tensor.name], f"{self.directory}: {hf_tensor.name}")
        part = (tensor.t() if hf_tensor.transposed else tensor)[start : start + rows]
        if part.numel() == tensor.numel():
            return part.contiguous()
        return part.clone(memory_format=torch.contiguous_format)  # a view would keep the joined tensor in memory

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Fill the flat fp32 tensor `out` with a parameter's elements from `start`."""
        out.copy_(self.tensor(name).view(-1)[start : start + out.numel()])


def _places(table: list[HFTensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorPlace]:
    places = {}
    for tensor in table:
        start = 0
        for name in tensor.sources:
            places[name] = TensorPlace(tensor, start, shapes[name][0])
            start += shapes[name][0]
    return places


def _matched(
    found: dict[str, StoredTensor],
    table: list[HFTensor],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    config: Config,
    directory: Path,
) -> dict[str, StoredTensor]:
    """The tensors by the family's names. Raises DataError unless the files hold exactly the family's tensors."""
    expected = {tensor.name: stored_shape(tensor, shapes) for tensor in table}
    held = {_full_name(name, expected, family): tensor for name, tensor in found.items()}
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    held = {name: tensor for name, tensor in held.items() if not ignored.fullmatch(name)}
    if config.model.tie_embeddings and "lm_head.weight" in held:
        _drop_tied_head(held, table[0].name, directory)
    problems = [
        *(f"missing: {name} {shape}" for name, shape in expected.items() if name not in held),
        *(f"unknown to {family.model_type}: {name} {shape_of(held[name])}" for name in held if name not in expected),
        *(
            f"{name} is {shape_of(held[name])}, config.json says {shape}"
            for name, shape in expected.items()
            if name in held and shape_of(held[name]) != shape
        ),
        *(
            f"{name} is stored as {type_of(held[name])}, not as {', '.join(DTYPES)}"
            for name in expected
            if name in held and type_of(held[name]) not in DTYPES
        ),
    ]
    if problems:
        raise DataError(f"{directory}: the weights do not fit config.json:\n{listed(problems)}")
    return held


def _full_name(name: str, expected: Mapping[str, Any], family: Family) -> str:
    """The name with the family's prefix, which some files leave out; transformers adds it too."""
    full = f"{family.prefix}{name}"
    known = full in expected or any(re.fullmatch(pattern, full) for pattern in family.ignored)
    return full if name not in expected and known else name


def _drop_tied_head(held: dict[str, StoredTensor], embedding: str, directory: Path) -> None:
    """Drop a stored copy of a tied head. Raises DataError if it differs from the embedding."""
    head, tokens = held["lm_head.weight"], held.get(embedding)
    if tokens is None or shape_of(head) != shape_of(tokens):
        return
    if {type_of(head), type_of(tokens)} <= set(DTYPES) and torch.equal(
        load_tensor(head, "lm_head.weight"), load_tensor(tokens, embedding)
    ):
        del held["lm_head.weight"]
        return
    raise DataError(
        f"{directory}: lm_head.weight differs from {embedding}, but config.json has tie_word_embeddings=true",
        hint="if the model has a head of its own, set tie_word_embeddings to false in config.json",
    )
