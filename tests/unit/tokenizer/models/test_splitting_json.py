"""Splitting a long text keeps the ids of a tokenizer.json, or is not done."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.json_tokenizers import KINDS, QWEN_SPLIT, SPLIT, edit
from tests.support.tokenizers import source_chunks
from tokenizer.models.fast import load_encoder
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.splitting_json import PATTERNS, can_split, split_at_words
from tokenizer.models.stress_texts import stress_texts


@pytest.fixture(scope="module", name="kinds")
def kinds_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / name) for name, make in KINDS.items()}


def opened(path: Path) -> HFTokenizer:
    found = load_tokenizer(path)
    assert isinstance(found, HFTokenizer)
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen"])
def test_parts_have_the_ids_of_the_whole(name: str, kinds: dict[str, Path]) -> None:
    tokenizer, generator = opened(kinds[name]), random.Random(3)
    assert can_split(tokenizer)
    pieces = [
        *stress_texts(list(tokenizer.special_tokens.values()), mixes=0),
        "a ",
        " b",
        "c\u0301 \u0301d",
        "x  y",
        "Z \n e",
        "<think>",
    ]
    texts = [
        "".join(generator.choice(pieces) + generator.choice(("", " ", "a ")) for _ in range(30)) for _ in range(400)
    ]
    splits = 0
    for text in [*texts, *source_chunks(60_000)]:
        parts = split_at_words(text, 1)
        assert "".join(parts) == text
        splits += len(parts) - 1
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text), repr(text)
    assert splits > 5_000


def test_the_encoder_splits_and_joins(kinds: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text, sizes, whole = "".join(source_chunks(40_000)), [], HFTokenizer.encode

    def counted(tokenizer: HFTokenizer, part: str) -> list[int]:
        sizes.append(len(part))
        return whole(tokenizer, part)

    encoder = load_encoder(kinds["llama3"])
    monkeypatch.setattr(split_at_words, "__defaults__", (1_000,))
    monkeypatch.setattr(HFTokenizer, "encode", counted)
    ids = encoder.encode(text)
    assert len(sizes) > 30 and max(sizes) < 1_200
    assert ids.dtype == np.int32 and ids.tolist() == whole(opened(kinds["llama3"]), text)
    assert encoder.encode("").tolist() == []


def test_a_text_without_such_a_place_stays_whole() -> None:
    assert split_at_words("漢字 " * 50, 10) == ["漢字 " * 50]
    assert split_at_words("ab cd ef", 3) == ["ab cd", " ef"]


def test_the_patterns_are_those_in_the_field() -> None:
    assert PATTERNS == (SPLIT, QWEN_SPLIT)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Prepend", "prepend": "x"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": "another pattern"},
        {"pre_tokenizer": "merged with the next"},
        {"added": {"content": "of the"}},
        {"added": {"rstrip": True}},
        {"added": {"single_word": True}},
    ],
    ids=str,
)
def test_nothing_is_split_if_ids_might_change(changes: dict[str, Any], kinds: dict[str, Path], tmp_path: Path) -> None:
    for file in kinds["qwen"].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer.json"
    tokenizer_json = json.loads(path.read_text())
    if "added" in changes:
        tokenizer_json["added_tokens"][-1] |= changes["added"]
        changes = {"added_tokens": tokenizer_json["added_tokens"]}
    elif isinstance(changes.get("pre_tokenizer"), str):
        split = tokenizer_json["pre_tokenizer"]["pretokenizers"][0]
        if changes["pre_tokenizer"] == "another pattern":
            split["pattern"]["Regex"] = split["pattern"]["Regex"].replace("{L}+|", "{L}+ ?|", 1)
        else:
            split["behavior"] = "MergedWithNext"
        changes = {"pre_tokenizer": tokenizer_json["pre_tokenizer"]}
    edit(path, **changes)
    assert not can_split(opened(path))
    assert "whole texts" in load_encoder(path).name


def test_llama_2_puts_a_space_before_each_text_and_is_not_split(kinds: dict[str, Path]) -> None:
    assert not can_split(opened(kinds["llama2"]))
