"""Exported tokenizer files against SentencePiece: through transformers' AutoTokenizer, and through our own loader.

test_tokenizer_files.py says how to run this with transformers 4.57.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from pretrain.convert.verify.token_ids import prove_tokenizer
from pretrain.errors import DataError, ExportError
from tests.support.tokenizers import (
    CONTROL_SYMBOLS,
    sentencepiece_model_fixture,  # noqa: F401
    source_chunks,
    train_sentencepiece,
)
from tokenizer.models import sentencepiece_to_hf
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.sentencepiece import merges_from_scores, read_proto
from tokenizer.models.sentencepiece_to_hf import build_tokenizer, incompatibilities, write_tokenizer
from tokenizer.models.stress_texts import stress_texts


@pytest.fixture
def exported(sentencepiece_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(sentencepiece_model, tmp_path, max_tokens=512)
    return tmp_path


@pytest.fixture
def processor(sentencepiece_model: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))


def test_stress_texts_are_many_different_encodable_and_always_the_same() -> None:
    texts = stress_texts()
    assert len(texts) == len(set(texts)) >= 832
    assert texts == stress_texts()
    for text in texts:
        text.encode("utf-8")


def test_ids_and_texts_equal_sentencepiece_on_every_stress_text(exported: Path, sentencepiece_model: Path) -> None:
    proof = prove_tokenizer(exported, sentencepiece_model)
    assert proof.strings >= 832
    assert proof.spelling_control > 20


def test_ids_equal_sentencepiece_on_random_cuts_of_source_code(exported: Path, processor: Any) -> None:
    generator, text = random.Random(5), "".join(source_chunks())
    theirs, ours = AutoTokenizer.from_pretrained(exported), load_tokenizer(exported / "tokenizer.json")
    for _ in range(300):
        start = generator.randrange(len(text) - 3_000)
        piece = text[start : start + generator.randrange(3_000)]
        ids = processor.encode(piece)
        assert theirs(piece, split_special_tokens=True).input_ids == [processor.bos_id(), *ids]
        assert ours.encode(piece) == ids and ours.decode(ids) == processor.decode(ids)


def test_ids_equal_on_random_strings_of_pieces_that_overlap_themselves(
    sentencepiece_model: Path, processor: Any
) -> None:
    """`▁▁▁` can be made in two ways: where both occur in one run, a merge list could choose otherwise."""
    model = read_proto(sentencepiece_model)
    ours = build_tokenizer(model)
    ours.encode_special_tokens = True
    pieces = [piece.piece.replace("▁", " ") for piece in model.pieces if piece.type == 1]
    overlapping = [piece for piece in pieces if any(piece[:k] == piece[-k:] for k in range(1, len(piece)))]
    assert len(overlapping) > 10
    generator = random.Random(6)
    for _ in range(5_000):
        parts = (generator.choice(generator.choice((overlapping, pieces))) * generator.randint(1, 4) for _ in range(5))
        text = "".join(parts)
        assert ours.encode(text, add_special_tokens=False).ids == processor.encode(text), repr(text)


def test_our_loader_gives_sentencepiece_s_ids_on_random_strings(exported: Path, processor: Any) -> None:
    """Symbols among them: to both they are plain text."""
    ours, generator = load_tokenizer(exported / "tokenizer.json"), random.Random(7)
    assert (ours.bos_id(), ours.eos_id(), ours.pad_id(), ours.vocab_size()) == (1, 2, 3, processor.vocab_size())
    parts = (*stress_texts(mixes=0), *CONTROL_SYMBOLS, "<s>", "</s>", "<0x0A>")
    for _ in range(2_000):
        kept = [generator.choice(parts)[:40] for _ in range(4)]
        text = "".join((*kept, *(chr(generator.choice((0x20, 0x61, 0x3B1, 0x4E00, 0x1F600)) + k) for k in range(6))))
        ids = processor.encode(text)
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == processor.decode(ids)


@pytest.mark.parametrize("method", ["encode", "decode", "pad_id"])
def test_a_loader_of_ours_that_errs_does_not_pass_the_proof(
    method: str, exported: Path, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {
        "encode": lambda codec, text: codec.backend.encode(text, add_special_tokens=False).ids[1:],
        "decode": lambda codec, ids: codec.backend.decode(list(ids)).replace("\x00", ""),
        "pad_id": lambda codec: -1,
    }
    monkeypatch.setattr(HFTokenizer, method, wrong[method])
    with pytest.raises(ExportError, match=r"in our own loader of tokenizer\.json"):
        prove_tokenizer(exported, sentencepiece_model)


def test_a_model_trained_on_text_that_spells_symbols_and_bytes_is_exported_exactly(tmp_path: Path) -> None:
    """Its pieces come as close to `<0x0A>` and `<s>` as pieces can; merges must still never end in them."""
    # Cut short of the whole spellings, which SentencePiece's trainer takes out of its text.
    spelt = "<0x0A 0x0A> <s s> </s /s> <unk <|im_start| im_start|> <0xFF 0xFF> "
    texts = [spelt * 20 + chunk for chunk in source_chunks(100_000)]
    whole = {"split_digits": False, "split_by_number": False, "split_by_unicode_script": False}
    model_file = train_sentencepiece(tmp_path / "spelt.model", vocab_size=800, texts=texts, **whole)
    assert {"<0x0A", "im_start|>"} <= {piece.piece for piece in read_proto(model_file).pieces}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(model_file, tmp_path, max_tokens=512)
    assert prove_tokenizer(tmp_path, model_file).strings >= 832


def test_control_symbols_are_recognized_for_chat_templates_and_can_be_split(exported: Path, processor: Any) -> None:
    theirs = AutoTokenizer.from_pretrained(exported)
    text = "<|im_start|>user\nhi<|im_end|>"
    start, end = (processor.piece_to_id(symbol) for symbol in CONTROL_SYMBOLS[:2])
    assert theirs(text, add_special_tokens=False).input_ids == [start, *processor.encode("user\nhi"), end]
    split = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert split == processor.encode(text)
    assert start not in split


def test_begin_of_text_is_added_and_end_of_text_is_not(exported: Path, processor: Any) -> None:
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs("x").input_ids == [1, *processor.encode("x")]
    assert theirs("x", "y").input_ids == [1, *processor.encode("x"), 1, *processor.encode("y")]
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2, 3)
    assert theirs.model_max_length == 512
    assert theirs.decode([1, *processor.encode(" a  b "), 2], skip_special_tokens=True) == " a  b "


def test_the_four_files_are_written(exported: Path, sentencepiece_model: Path) -> None:
    assert (exported / "tokenizer.model").read_bytes() == sentencepiece_model.read_bytes()
    config = json.loads((exported / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["add_bos_token"] is True
    assert config["add_eos_token"] is False
    assert config["clean_up_tokenization_spaces"] is False
    assert {entry["content"] for entry in config["added_tokens_decoder"].values()} >= set(CONTROL_SYMBOLS)
    assert json.loads((exported / "special_tokens_map.json").read_text())["pad_token"] == "<pad>"


@pytest.mark.parametrize("order", ["reversed", "one exchanged"])
def test_a_wrong_merge_order_does_not_pass_the_proof(
    order: str, sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = merges_from_scores(read_proto(sentencepiece_model))
    if order == "reversed":
        merges.reverse()
    else:
        merges[0], merges[300] = merges[300], merges[0]
    monkeypatch.setattr(sentencepiece_to_hf, "merges_from_scores", lambda model: merges)
    write_tokenizer(sentencepiece_model, tmp_path, max_tokens=512)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ExportError, match="differs from SentencePiece in"):
        prove_tokenizer(tmp_path, sentencepiece_model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "unigram"}, "model_type is unigram"),
        ({"model_type": "char"}, "model_type is char"),
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix is on"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is on"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name=nmt_nfkc rewrites"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is on"),
        ({"user_defined_symbols": ["<tool>"]}, "user_defined_symbols, which are matched before BPE: '<tool>'"),
        ({"pad_id": -1}, "no pad_id"),
        ({"pad_id": -1, "eos_id": -1}, "no eos_id and no pad_id"),
        ({"control_symbols": ["§"]}, "control symbols of one character"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = train_sentencepiece(tmp_path / "other.model", vocab_size=600, texts=source_chunks(50_000), **changes)
    with pytest.raises(DataError) as caught:
        write_tokenizer(path, tmp_path, max_tokens=512)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "tokenizer.json").exists()


def test_pieces_that_a_merge_list_cannot_make_are_reasons(sentencepiece_model: Path) -> None:
    model = read_proto(sentencepiece_model)
    pieces = [piece for piece in model.pieces if piece.type == 1]
    assert incompatibilities(model) == []
    pieces[0].score = pieces[1].score
    next(piece for piece in pieces if piece.piece == "x").type = 5
    reasons = "\n".join(incompatibilities(model))
    assert "pieces share a score" in reasons
    assert "unused pieces: 'x'" in reasons
    assert "characters occur in pieces but are not pieces themselves: ['x']" in reasons


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x00" * 64])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.model"):
        read_proto(tmp_path / "bad.model")
