from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import DataError
from tests.support.tokenizers import train_sentencepiece
from tokenizer.models.sentencepiece import read_proto
from tokenizer.models.sentencepiece_to_hf import incompatibilities
from tokenizer.training.inspect_sentencepiece import (
    Check,
    facts,
    listed,
    measure_round_trip,
    open_model,
    pieces_of,
    run_checks,
    visible,
)

TEXTS = ["the cat sat on the mat, of the, in the, on the"] * 50


def trained(path: Path, **changes: Any) -> Path:
    return train_sentencepiece(path, 330, TEXTS, hard_vocab_limit=False, **changes)


def checks_of(path: Path) -> dict[str, Check]:
    return {check.name: check for check in run_checks(open_model(path))}


def test_a_model_of_ours_passes_every_check(tmp_path: Path) -> None:
    checks = checks_of(trained(tmp_path / "m.model"))
    assert [name for name, check in checks.items() if not check.passed] == []
    assert "stress texts are restored exactly" in checks["lossless"].detail


@pytest.mark.parametrize(
    ("changes", "failed", "detail"),
    [
        ({"byte_fallback": False}, {"byte fallback", "lossless", "exports to Hugging Face"}, "256 of 256 bytes"),
        (
            {"normalization_rule_name": "nmt_nfkc"},
            {"text as it is", "lossless", "word by word", "exports to Hugging Face"},
            "normalization nmt_nfkc rewrites characters",
        ),
        (
            {"add_dummy_prefix": True},
            {"text as it is", "word by word", "exports to Hugging Face"},
            "it puts a space before each text",
        ),
        (
            {"remove_extra_whitespaces": True},
            {"text as it is", "lossless", "word by word", "exports to Hugging Face"},
            "it collapses runs of spaces",
        ),
        ({"eos_id": -1}, {"bos and eos", "exports to Hugging Face"}, "eos -1"),
        ({"pad_id": -1}, {"pad differs from eos", "exports to Hugging Face"}, "there is no pad id"),
        ({"user_defined_symbols": ["<x>"]}, {"text stays text", "exports to Hugging Face"}, "gets its id: <x>"),
        ({"model_type": "unigram"}, {"word by word", "exports to Hugging Face"}, "it is not a BPE model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_check_can_fail_and_says_why(
    tmp_path: Path, changes: dict[str, Any], failed: set[str], detail: str
) -> None:
    checks = checks_of(trained(tmp_path / "m.model", **changes))
    assert {name for name, check in checks.items() if not check.passed} == failed
    assert any(detail in check.detail for check in checks.values() if not check.passed)


def test_the_reason_against_an_export_is_the_one_of_the_export(tmp_path: Path) -> None:
    path = trained(tmp_path / "m.model", model_type="unigram", add_dummy_prefix=True)
    reasons = incompatibilities(read_proto(path))
    assert checks_of(path)["exports to Hugging Face"].detail == "; ".join(reasons)
    assert "only bpe has merges" in reasons[0]


def test_facts_are_read_from_the_model_itself(tmp_path: Path) -> None:
    shown = facts(open_model(trained(tmp_path / "m.model", character_coverage=0.99, split_digits=False)))
    assert shown["type"] == "bpe" and shown["digits split"] == "no" and shown["byte fallback"] == "yes"
    assert shown["character coverage"] == "0.99" and shown["normalization"] == "identity"
    assert shown["special ids"] == "unk 0  bos 1  eos 2  pad 3"
    assert shown["control symbols"].startswith("<unk> <s> </s> <pad> <|im_start|>")
    assert listed([f"<{n}>" for n in range(750)]).endswith("<19> … 750 in all") and listed([]) == "none"
    assert "256 byte" in shown["pieces"] and "11 control" in shown["pieces"]


def test_pieces_are_those_of_the_ids(tmp_path: Path) -> None:
    model = open_model(trained(tmp_path / "m.model"))
    text = "the cat\n  ω <s>"
    assert [token for _, token in pieces_of(model, text)] == model.processor.encode(text)
    assert [piece for piece, _ in pieces_of(model, text)] == model.processor.encode(text, out_type=str)


def test_the_round_trip_knows_the_sign_of_a_space_from_a_loss(tmp_path: Path) -> None:
    trip = measure_round_trip(open_model(trained(tmp_path / "m.model")), ["a", "a▁b", "▁", " "])
    assert (trip.texts, trip.space_marks, trip.failures) == (4, 2, [])
    changing = open_model(trained(tmp_path / "n.model", remove_extra_whitespaces=True))
    assert measure_round_trip(changing, ["a", "the  cat "]).failures == [("the  cat ", "the cat")]


def test_nothing_that_a_terminal_would_obey_is_shown() -> None:
    assert visible("a\x1b[31m\u202eb\n\t漢 ") == "a\\x1b[31m\\u202eb\\n\\t漢 "


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"\x7fELF\x02", bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        open_model(tmp_path / "m.model")
    with pytest.raises(DataError, match="no such tokenizer"):
        open_model(tmp_path / "other.model")


def test_a_damaged_model_is_refused_or_inspected_and_never_a_crash(tmp_path: Path) -> None:
    data = bytearray(trained(tmp_path / "m.model").read_bytes())
    for place in range(0, len(data), len(data) // 40):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        (tmp_path / "d.model").write_bytes(damaged)
        try:
            model = open_model(tmp_path / "d.model")
        except DataError:
            continue
        facts(model)
        pieces_of(model, "the cat ω")
