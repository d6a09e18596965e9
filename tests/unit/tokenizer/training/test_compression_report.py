import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import DataError
from tests.support.tokenizers import train_sentencepiece
from tokenizer.models.sentencepiece import BYTE, NORMAL
from tokenizer.training.compression_report import (
    TokenizerReport,
    fallback_characters,
    make_report,
    measure_sources,
    script_of,
    write_report,
)
from tokenizer.training.inspect_sentencepiece import SentencePieceModel, open_model

WORDS = "the cat sat on the mat, of the, in the, on the Straße\n"
CODE = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceModel:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    return open_model(train_sentencepiece(path, 330, [WORDS * 50, CODE * 50], hard_vocab_limit=False))


def report_on(model: SentencePieceModel, **texts: list[str]) -> TokenizerReport:
    return make_report(model, measure_sources(model, texts), left_out={"empty": 2})


def test_counts_are_those_of_sentencepiece_and_of_the_text(model: SentencePieceModel) -> None:
    texts = {"words": [WORDS * 3, "the Straße ω"], "code": [CODE, "漢x漢字", ""]}
    report = report_on(model, **texts)
    for source in report.sources:
        ids = [token for text in texts[source.name] for token in model.processor.encode(text)]
        assert source.tokens == len(ids)
        assert source.byte_tokens == sum(model.processor.is_byte(token) for token in ids)
        assert source.bytes == sum(len(text.encode()) for text in texts[source.name])
        assert source.characters == sum(map(len, texts[source.name]))
        assert source.documents == len(texts[source.name])
        assert source.bytes_per_token == pytest.approx(source.bytes / source.tokens)
        assert [token for _, token in source.excerpt] == model.processor.encode(texts[source.name][0])
    words, code = report.sources
    assert (words.byte_tokens, words.fallback_characters) == (2, 1)
    assert (code.byte_tokens, code.fallback_characters) == (9, 3)
    assert report.fallback == [("漢", 2), ("ω", 1), ("字", 1)]
    assert report.total.name == "all"
    assert report.total.tokens == words.tokens + code.tokens and report.total.documents == 5
    assert report.total.byte_share == pytest.approx(11 / report.total.tokens)


def test_a_long_document_is_counted_as_in_one_call(model: SentencePieceModel) -> None:
    text = (WORDS + CODE) * 3_000
    [meter] = measure_sources(model, {"long": [text]})
    ids = np.bincount(model.processor.encode(text), minlength=len(model.proto.pieces))
    assert (meter.use == ids).all()


def test_the_vocabulary_is_divided_into_used_and_never_used(model: SentencePieceModel) -> None:
    report = report_on(model, words=[WORDS])
    used = set(model.processor.encode(WORDS))
    normal = {token for token, piece in enumerate(model.proto.pieces) if piece.type == NORMAL}
    vocabulary = report.vocabulary
    assert vocabulary.pieces == len(normal) and vocabulary.used == len(used & normal)
    never = [model.proto.pieces[token].piece for token in sorted(normal - used)]
    assert never and vocabulary.never_used == never[: len(vocabulary.never_used)]
    counts = [count for _, count in vocabulary.most_frequent]
    assert counts == sorted(counts, reverse=True)
    assert vocabulary.most_frequent[0] == ("▁the", 4)
    lengths = [len(piece) for piece, _ in vocabulary.longest]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(vocabulary.lengths.values()) == sum(vocabulary.scripts.values()) == vocabulary.pieces
    assert vocabulary.curve[0] == (1, 4) and vocabulary.curve[-1][0] == vocabulary.used
    ranks = [rank for rank, _ in vocabulary.curve]
    assert ranks == sorted(set(ranks))


def test_bytes_become_the_characters_they_stand_for(model: SentencePieceModel) -> None:
    for text in ("aωb", "漢字", "x👩‍👩‍👧y漢 z", "", "plain"):
        ids = model.processor.encode(text)
        bytes_ = [int(model.proto.pieces[t].piece[3:5], 16) if model.proto.pieces[t].type == BYTE else -1 for t in ids]
        learned = {piece.piece for piece in model.proto.pieces if piece.type == NORMAL}
        expected = [char for char in text if char not in learned and char != " "]
        assert fallback_characters(np.array(bytes_, np.int64)) == expected


@pytest.mark.parametrize(
    ("piece", "script"),
    [
        ("▁the", "Latin"),
        ("при", "Cyrillic"),
        ("漢字", "Han"),
        ("カタ", "Kana"),
        ("かな", "Kana"),
        ("한", "Hangul"),
        ("ʼн", "Other"),
        ("々", "Han"),
        ("ー", "Kana"),
        ("º", "Latin"),
        ("▁▁▁", "space"),
        ("\n\n", "space"),
        ("12", "digit"),
        ("▁(", "sign"),
        ("1a", "Latin"),
    ],
)
def test_scripts(piece: str, script: str) -> None:
    assert script_of(piece) == script


def test_the_same_texts_give_the_same_report_and_its_json_holds_the_ratios(
    model: SentencePieceModel, tmp_path: Path
) -> None:
    report = report_on(model, words=[WORDS], code=[CODE, "ω"])
    assert report.as_json() == report_on(model, words=[WORDS], code=[CODE, "ω"]).as_json()
    write_report(report, tmp_path / "report.json")
    tree = json.loads((tmp_path / "report.json").read_text())
    assert tree["sources"][0]["bytes_per_token"] == report.sources[0].bytes_per_token
    assert tree["total"]["byte_share"] == report.total.byte_share
    assert tree["left_out"] == {"empty": 2} and tree["sha256"] == model.sha256
    assert tree["round_trip"]["failures"] == [] and tree["round_trip"]["space_marks"] > 0


def test_a_model_that_changes_text_is_caught_by_the_round_trip(tmp_path: Path) -> None:
    path = train_sentencepiece(
        tmp_path / "m.model", 330, [WORDS * 50], hard_vocab_limit=False, remove_extra_whitespaces=True
    )
    changing = open_model(path)
    report = report_on(changing, words=[WORDS])
    assert len(report.round_trip.failures) > 50
    assert ("  the  ", "the") in report.round_trip.failures


def test_a_model_of_another_kind_is_reported_on_with_what_it_loses(tmp_path: Path) -> None:
    changes = {"model_type": "unigram", "add_dummy_prefix": True, "byte_fallback": False}
    path = train_sentencepiece(tmp_path / "m.model", 60, [WORDS * 50], hard_vocab_limit=False, **changes)
    other = open_model(path)
    report = report_on(other, words=[WORDS * 5_000, "the ω"])
    assert report.total.tokens == sum(len(other.processor.encode(text)) for text in (WORDS * 5_000, "the ω"))
    assert report.total.unknown_tokens == 1 and report.total.byte_tokens == 0
    assert report.notes == ["1 tokens are <unk>: their characters are lost."]


def test_nothing_to_report_on_is_an_error(model: SentencePieceModel) -> None:
    for texts in ({}, {"a": []}, {"a": [""]}):
        with pytest.raises(DataError, match="no held-out text"):
            report_on(model, **texts)
