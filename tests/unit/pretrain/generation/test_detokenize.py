"""Incremental detokenization: complete characters, nothing that changes later, and stop texts."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.errors import UserError
from pretrain.generation.detokenize import CompletionBuilder, IncrementalDetokenizer
from pretrain.generation.prompts import encode_prompt
from tests.support.tokenizers import sentencepiece_model_fixture, train_sentencepiece  # noqa: F401
from tokenizer.models.base import Tokenizer
from tokenizer.models.open_tokenizer import load_tokenizer

MIXED = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from(["def f(x):", " return", "漢字", "😀", "é", "\n", "  ", "\ufffd"])),
    max_size=12,
).map("".join)

BOS, EOS = 256, 257


class Bytes:
    """A codec of single bytes; BOS begins and EOS ends a text, and neither shows."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < BOS).decode(errors="replace")

    def bos_id(self) -> int:
        return BOS

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return -1

    def vocab_size(self) -> int:
        return 258


def pieces(
    codec: Tokenizer, prompt: list[int], tokens: Sequence[int], **options: object
) -> tuple[CompletionBuilder, list[str]]:
    shown: list[str] = []
    row = CompletionBuilder(codec, prompt, on_text=shown.append, **options)  # type: ignore[arg-type]
    for token in tokens:
        if not row.add(token):
            break
    row.finish()
    assert "".join(shown) == row.text
    return row, shown


def test_characters_come_whole() -> None:
    row, shown = pieces(Bytes(), [BOS, *b"Say: "], "aé漢😀z".encode())
    assert shown == ["a", "é", "漢", "😀", "z"]
    assert row.tokens == list("aé漢😀z".encode())


def test_half_a_character_at_the_end_is_still_shown() -> None:
    assert pieces(Bytes(), [BOS], b"a\xf0\x9f")[1] == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_a_byte_that_is_no_character_is_shown_with_what_follows() -> None:
    assert pieces(Bytes(), [BOS], b"a\xe6b")[1] == ["a", "\N{REPLACEMENT CHARACTER}b"]


@settings(max_examples=100, deadline=None)
@given(MIXED, MIXED)
def test_bytes_of_any_text_make_the_text(before: str, text: str) -> None:
    row, shown = pieces(Bytes(), [BOS, *before.encode()], text.encode())
    assert row.text == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown) or "\N{REPLACEMENT CHARACTER}" in text


@pytest.fixture(scope="module")
def codecs(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """One of ours, and one that takes the first space of what it decodes away."""
    prefixed = tmp_path_factory.mktemp("prefixed") / "tokenizer.model"
    train_sentencepiece(prefixed, vocab_size=600, add_dummy_prefix=True)
    return [load_tokenizer(sentencepiece_model), load_tokenizer(prefixed)]


@settings(max_examples=60, deadline=None)
@given(MIXED, MIXED.filter(lambda text: "\0" not in text))
def test_pieces_of_a_real_tokenizer_make_what_it_decodes_at_once(
    codecs: list[Tokenizer], before: str, text: str
) -> None:
    for codec in codecs:
        prompt, tokens = [codec.bos_id(), *codec.encode(before)], codec.encode(text) * 5
        whole = codec.decode([*prompt, *tokens])[len(codec.decode(prompt)) :]
        assert pieces(codec, prompt, tokens)[0].text == whole


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1_020), max_size=80))
def test_whatever_a_model_makes_is_shown_as_it_is_decoded_at_once(codecs: list[Tokenizer], tokens: list[int]) -> None:
    """Random tokens: half characters, control symbols, and ids beyond the tokenizer, which have no text."""
    codec = codecs[0]
    known = [token for token in tokens if token < codec.vocab_size()]
    assert pieces(codec, [codec.bos_id()], tokens)[0].text == codec.decode(known)


def test_what_a_tokenizer_decodes_is_not_decoded_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    class Counting(Bytes):
        def decode(self, ids: Sequence[int]) -> str:
            lengths.append(len(ids))
            return super().decode(ids)

    pieces(Counting(), [BOS], b"some words, again and again. " * 50)
    assert max(lengths) < 50


class Runs(Bytes):
    """As the tokenizers of Hugging Face decode: a run of byte pieces is a text, or a replacement character for each."""

    def decode(self, ids: Sequence[int]) -> str:
        text, run = "", b""
        for token in [*(token for token in ids if token < BOS), 0]:
            if token >= 128:
                run += bytes([token])
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += "\N{REPLACEMENT CHARACTER}" * len(run)
            text, run = text + (chr(token) if token else ""), b""
        return text


def test_a_byte_that_spoils_what_was_shown_does_not_change_it() -> None:
    stream = IncrementalDetokenizer(Runs(), [BOS, *b"x"])
    given_out = [stream.push(token) for token in [*"漢".encode(), 0xE6, *b"ab"]]
    assert given_out == ["", "", "漢", "", "\N{REPLACEMENT CHARACTER}a", "b"]


@pytest.mark.parametrize("codec", [Bytes(), Runs()], ids=["bytes", "runs"])
def test_a_long_text_of_many_bytes_a_character_is_forgotten_between_characters(codec: Bytes) -> None:
    text = "漢字😀é" * 40
    row, shown = pieces(codec, [BOS, *"漢".encode()], text.encode())
    assert row.text == text
    assert shown == list(text)


# --- stop texts -------------------------------------------------------------------------------------------------------


def test_a_text_ends_before_a_stop_text_and_its_beginning_is_not_shown() -> None:
    row, shown = pieces(Bytes(), [BOS], b"one END two", stop_texts=["END"])
    assert (row.text, row.stopped, row.tokens) == ("one ", True, list(b"one END"))
    assert shown == ["o", "n", "e", " "]


def test_what_only_began_like_a_stop_text_is_shown() -> None:
    row, shown = pieces(Bytes(), [BOS], b"aENDb EN", stop_texts=["ENDE", "ENDING"])
    assert (row.text, row.stopped) == ("aENDb EN", False)
    assert shown == ["a", "ENDb", " ", "EN"]


@given(
    st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.text("ab")
)
def test_it_ends_at_the_first_stop_text_of_what_was_made(text: str, stops: list[str], before: str) -> None:
    """Not at one in the prompt, nor at one that begins there."""
    row, _ = pieces(Bytes(), [BOS, *before.encode()], text.encode(), stop_texts=stops)
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert row.stopped == bool(ends)
    if ends:
        begin = min(text[: ends[0]].find(stop) for stop in stops if stop in text[: ends[0]])
        assert row.text == text[:begin]
        assert len(row.tokens) == ends[0]
    else:
        assert row.text == text


def test_a_stop_token_is_no_part_of_the_text() -> None:
    row, _ = pieces(Bytes(), [BOS], [*b"ab", EOS, *b"cd"], stop_ids=frozenset({EOS}))
    assert (row.text, row.tokens, row.stopped) == ("ab", [*b"ab"], True)


def test_a_stop_text_that_ends_in_half_a_character() -> None:
    """What was held back as unfinished may still hold it when no more tokens come."""
    row, _ = pieces(
        Bytes(), [BOS], [*b"x", 0xE6, EOS], stop_ids=frozenset({EOS}), stop_texts=["\N{REPLACEMENT CHARACTER}"]
    )
    assert row.text == "x"


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_begins_as_a_document_does(codecs: list[Tokenizer]) -> None:
    assert encode_prompt(codecs[0], "") == [codecs[0].bos_id()]
    assert encode_prompt(codecs[0], "def f") == [codecs[0].bos_id(), *codecs[0].encode("def f")]


def test_without_a_bos_an_empty_prompt_is_the_end_of_another_document() -> None:
    class NoBos(Bytes):
        def bos_id(self) -> int:
            return -1

    assert encode_prompt(NoBos(), "") == [EOS]
    assert encode_prompt(NoBos(), "a") == [97]


def test_text_that_spells_a_control_symbol_stays_text(codecs: list[Tokenizer]) -> None:
    for spelling in ("</s>", "<s>", "<|im_end|>"):
        ids = encode_prompt(codecs[0], spelling)
        assert codecs[0].decode(ids) == spelling
        assert codecs[0].eos_id() not in ids
        assert ids.count(codecs[0].bos_id()) == 1


def test_half_a_surrogate_pair_is_refused(codecs: list[Tokenizer]) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        encode_prompt(codecs[0], "a\udcff")
