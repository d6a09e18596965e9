import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.real_texts import code_texts, prose_texts, translated_texts
from tests.support.tokenizers import (
    CONTROL_SYMBOLS,
    sentencepiece_model_fixture,  # noqa: F401
    source_chunks,
    train_sentencepiece,
)
from tokenizer.models import fast
from tokenizer.models.fast import GigatokenEncoder, TextEncoder, WordEncoder, load_encoder
from tokenizer.models.sentencepiece import load_sentencepiece_model, proto_of
from tokenizer.models.stress_texts import stress_texts

NORMAL, UNUSED = 1, 5
SYMBOLS = ["<unk>", "<s>", "</s>", "<pad>", *CONTROL_SYMBOLS, "<0x0A>", "<0x00>", "<0xFF>", "<0xE2><0x96><0x81>"]
FRAGMENTS = [
    *SYMBOLS,
    "<0x0a>",
    "<0x0A",
    "\u2581",
    " ",
    "  ",
    "\n",
    "\t",
    "\0",
    "the",
    "self",
    "e\u0301",
    "漢字",
    "é",
    "😀",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def changed(path: Path, change: Callable[[Any], None]) -> bytes:
    """The model at `path` as bytes, its `ModelProto` changed."""
    proto = proto_of(load_sentencepiece_model(path))
    change(proto)
    return bytes(proto.SerializeToString())


def normal_pieces(proto: Any) -> list[Any]:
    return [piece for piece in proto.pieces if piece.type == NORMAL and len(piece.piece) > 2]


def differing(encoder: TextEncoder, texts: list[str]) -> list[str]:
    """Those of `texts` to which `encoder` gives other ids than SentencePiece to the whole."""
    return [text for text in texts if encoder.encode(text).tolist() != encoder.model.encode(text)]


@pytest.fixture(scope="module", name="encoder")
def encoder_fixture(sentencepiece_model: Path) -> TextEncoder:
    return load_encoder(sentencepiece_model)


@pytest.fixture(scope="module", name="wide_model")
def wide_model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 5,000 pieces, learned from code and from prose in many scripts."""
    texts = [*code_texts(300_000), *prose_texts(300_000), *translated_texts(300_000)]
    chunks = [text[start : start + 4_000] for text in texts for start in range(0, len(text), 4_000)]
    path = tmp_path_factory.mktemp("wide") / "m.model"
    return train_sentencepiece(path, 5_000, chunks, character_coverage=0.995, num_threads=2)


@pytest.fixture(scope="module", name="wide", params=[GigatokenEncoder, WordEncoder])
def wide_fixture(request: pytest.FixtureRequest, wide_model: Path) -> TextEncoder:
    """Either encoder with that model."""
    model = load_sentencepiece_model(wide_model)
    encode = WordEncoder(model) if request.param is WordEncoder else GigatokenEncoder(proto_of(model))
    return TextEncoder(model, "", "", encode)


def test_a_model_of_ours_is_encoded_by_gigatoken(encoder: TextEncoder) -> None:
    assert encoder.name.startswith("gigatoken 0.10.")
    assert encoder.note == ""
    assert isinstance(encoder.encode, GigatokenEncoder)


@pytest.mark.parametrize("text", ["", "a", "def f(x):\n    return  x", "\u2581", "\0", "漢字 é 😀"])
def test_ids_are_a_row_of_int32_whatever_encodes(encoder: TextEncoder, text: str) -> None:
    for encode in (encoder.encode, WordEncoder(encoder.model), fast._encode_whole(encoder.model)):
        ids = encode(text)
        assert (ids.dtype, ids.ndim) == (np.int32, 1)
        assert ids.tolist() == encoder.model.encode(text)


def test_ids_equal_on_every_stress_text(wide: TextEncoder) -> None:
    texts = stress_texts(SYMBOLS)
    assert len(texts) > 832
    assert differing(wide, texts) == []
    assert differing(wide, ["\n".join(texts), " ".join(reversed(texts))]) == []


@given(ANY_TEXT)
def test_ids_of_any_text_are_equal(wide: TextEncoder, text: str) -> None:
    assert wide.encode(text).tolist() == wide.model.encode(text)


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)))
@example(["<s>", "</s>"])
@example(["\u2581", " ", "\u2581", "the"])
def test_ids_of_texts_that_spell_symbols_and_bytes_are_equal(wide: TextEncoder, parts: list[str]) -> None:
    text = "".join(parts)
    assert wide.encode(text).tolist() == wide.model.encode(text)


@given(st.data())
def test_ids_of_chains_of_the_models_own_pieces_are_equal(wide: TextEncoder, data: st.DataObject) -> None:
    size = wide.model.get_piece_size()
    tokens = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 4)), max_size=12))
    text = "".join(wide.model.id_to_piece(token) * times for token, times in tokens).replace("\u2581", " ")
    assert wide.encode(text).tolist() == wide.model.encode(text)


def test_ids_of_long_texts_without_a_space_are_equal(wide: TextEncoder) -> None:
    texts = ["".join(code_texts(100_000)).replace(" ", ""), "漢字かな交じり文。" * 8_000, "ab" * 50_000, " " * 50_000]
    assert differing(wide, texts) == []


def test_ids_of_three_megabytes_are_equal(wide: TextEncoder) -> None:
    texts = [*code_texts(1_000_000), *prose_texts(1_000_000), *translated_texts(1_000_000)]
    assert differing(wide, texts) == []


@pytest.mark.slow
def test_ids_of_forty_megabytes_are_equal(wide: TextEncoder) -> None:
    texts = [*code_texts(20_000_000), *prose_texts(16_000_000), *translated_texts(8_000_000)]
    # Fewer where neither manual pages nor translations are installed; the sources are always there.
    assert sum(len(text.encode()) for text in texts) > 20_000_000
    assert differing(wide, texts) == []


def test_a_model_trained_on_text_that_spells_symbols_and_bytes_is_encoded_exactly(tmp_path: Path) -> None:
    """Its pieces come as close to `<0x0A>` and `<s>` as pieces can; merges must still never end in them."""
    spelt = "<0x0A 0x0A> <s s> </s /s> <unk <|im_start| im_start|> <0xFF 0xFF> "
    texts = [spelt * 20 + chunk for chunk in source_chunks(100_000)]
    whole = {"split_digits": False, "split_by_number": False, "split_by_unicode_script": False}
    encoder = load_encoder(train_sentencepiece(tmp_path / "m.model", 800, texts, **whole))
    assert encoder.name.startswith("gigatoken")
    assert encoder.model.piece_to_id("<0x0A") != encoder.model.unk_id()
    assert differing(encoder, [*stress_texts(SYMBOLS), spelt * 3, "".join(SYMBOLS) * 3]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"split_digits": False},
        {"split_by_unicode_script": False, "split_by_number": False, "split_digits": False},
        {"allow_whitespace_only_pieces": False},
        {"control_symbols": ["§", "Q", "▁", "two words", "<0x0A"]},
        {"character_coverage": 0.98},
        {"pad_id": -1},
        {"unk_id": 7, "unk_piece": "unknown"},
    ],
    ids=str,
)
def test_other_models_that_gigatoken_encodes_are_encoded_exactly(tmp_path: Path, changes: dict[str, Any]) -> None:
    encoder = load_encoder(train_sentencepiece(tmp_path / "m.model", 900, **changes))
    assert encoder.name.startswith("gigatoken")
    symbols = [*SYMBOLS, *changes.get("control_symbols", []), "unknown"]
    assert differing(encoder, [*stress_texts(symbols), *source_chunks(50_000)]) == []


@pytest.mark.parametrize(
    ("changes", "name", "note"),
    [
        ({"model_type": "unigram"}, "SentencePiece, whole texts", "it is not a BPE model"),
        ({"model_type": "char", "vocab_size": 400}, "SentencePiece, whole texts", "it is not a BPE model"),
        ({"add_dummy_prefix": True}, "SentencePiece, whole texts", "it adds, removes or does not mark spaces"),
        ({"remove_extra_whitespaces": True}, "SentencePiece, whole texts", "it adds, removes or does not mark spaces"),
        ({"normalization_rule_name": "nmt_nfkc"}, "SentencePiece, whole texts", "it normalizes text (nmt_nfkc)"),
        ({"normalization_rule_name": "nfkc"}, "SentencePiece, whole texts", "it normalizes text (nfkc)"),
        ({"treat_whitespace_as_suffix": True}, "SentencePiece, whole texts", "spaces end a word"),
        ({"split_by_whitespace": False}, "SentencePiece, whole texts", "a space after another character"),
        ({"user_defined_symbols": ["<x>", "self."]}, "SentencePiece, word by word", "user-defined or unused: '<x>'"),
    ],
    ids=str,
)
def test_a_model_that_gigatoken_may_encode_otherwise_is_left_to_sentencepiece(
    tmp_path: Path, changes: dict[str, Any], name: str, note: str
) -> None:
    options = {"vocab_size": 800, "hard_vocab_limit": False, **changes}
    encoder = load_encoder(train_sentencepiece(tmp_path / "m.model", **options))
    assert encoder.name == name
    assert note in encoder.note
    assert differing(encoder, [*stress_texts([*SYMBOLS, "<x>"], mixes=100), "a\u00a0 b", *source_chunks(20_000)]) == []


def two_of_one_score(proto: Any) -> None:
    first, second, *_ = normal_pieces(proto)
    second.score = first.score


def one_unused(proto: Any) -> None:
    normal_pieces(proto)[5].type = UNUSED


def one_like_a_byte(proto: Any) -> None:
    normal_pieces(proto)[-1].piece = "<0x0a>"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (two_of_one_score, "shares its score with another"),
        (one_unused, "user-defined or unused"),
        (one_like_a_byte, "'<0x0a>' looks like a byte"),
    ],
)
def test_a_model_with_an_odd_vocabulary_is_left_to_sentencepiece(
    sentencepiece_model: Path, change: Callable[[Any], None], note: str
) -> None:
    encoder = load_encoder(changed(sentencepiece_model, change))
    assert encoder.name == "SentencePiece, word by word"
    assert note in encoder.note
    assert differing(encoder, stress_texts(SYMBOLS, mixes=100)) == []


def test_a_piece_that_begins_as_a_byte_is_spelt_is_never_made_of_that_byte(sentencepiece_model: Path) -> None:
    def change(proto: Any) -> None:
        normal_pieces(proto)[-1].piece = "<0x01>a"

    encoder = load_encoder(changed(sentencepiece_model, change))
    assert encoder.name.startswith("gigatoken")
    assert differing(encoder, ["\x01a", "<0x01>a", "a\x01a <0x01>\x01"]) == []


def test_the_path_and_the_bytes_of_a_model_give_the_same(sentencepiece_model: Path, encoder: TextEncoder) -> None:
    other = load_encoder(sentencepiece_model.read_bytes())
    assert (other.name, other.note) == (encoder.name, encoder.note)
    assert other.encode("def f(x):").tolist() == encoder.encode("def f(x):").tolist()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"pattern": {"String": " "}', '"pattern": {"String": "\\t"}'),
        ('"<0xE2>": ', '"<0xE2>": 1'),
        ('"def": ', '"def": 9'),
        ('"added_tokens": []', '"added_tokens": [{"id": 2, "content": "</s>", "single_word": false, "lstrip": false, '
         '"rstrip": false, "normalized": false, "special": true}]'),
    ],
)  # fmt: skip
def test_a_difference_is_found_when_the_model_is_loaded(
    sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    original = fast.gigatoken_json

    def broken(proto: Any) -> str:
        text = original(proto)
        assert text.count(right) == 1
        return text.replace(right, wrong)

    monkeypatch.setattr(fast, "gigatoken_json", broken)
    encoder = load_encoder(sentencepiece_model)
    assert encoder.name == "SentencePiece, word by word"
    assert "gigatoken and SentencePiece give different ids for" in encoder.note
    assert differing(encoder, stress_texts(SYMBOLS, mixes=50)) == []


def test_each_merge_that_is_missing_is_found(sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_sentencepiece_model(sentencepiece_model)
    proto = proto_of(model)
    for number in range(3, len(normal_pieces(proto)), 40):
        less = proto_of(model)
        # As a control symbol it is no part of the tokenizer.json.
        normal_pieces(less)[number].type = 3
        assert fast.first_difference(GigatokenEncoder(less), model, proto), normal_pieces(proto)[number].piece


def test_another_release_of_gigatoken_is_not_trusted(
    sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "version", lambda package: "0.11.0")
    encoder = load_encoder(sentencepiece_model)
    assert encoder.name == "SentencePiece, word by word"
    assert encoder.note == "gigatoken 0.11.0 is installed; only 0.10.x was compared with SentencePiece"


def test_without_gigatoken_sentencepiece_does_it_and_says_what_is_missing(
    sentencepiece_model: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    other = load_encoder(sentencepiece_model)
    assert other.name == "SentencePiece, word by word"
    assert "pip install 'pretrain-toolkit[fast]'" in other.note
    text = "".join(source_chunks(50_000))
    assert other.encode(text).tolist() == encoder.encode(text).tolist()


@pytest.mark.parametrize("kind", ["gigatoken", "word by word", "whole"])
def test_a_lone_surrogate_is_an_error_and_never_other_text(encoder: TextEncoder, kind: str) -> None:
    encodes = {
        "gigatoken": encoder.encode,
        "word by word": WordEncoder(encoder.model),
        "whole": fast._encode_whole(encoder.model),
    }
    with pytest.raises((UnicodeEncodeError, RuntimeError)):
        encodes[kind]("a \ud800 b")


def test_gigatoken_is_loaded_anew_before_it_has_seen_too_much(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = GigatokenEncoder._load
    monkeypatch.setattr(fast, "GIGATOKEN_RELOAD_BYTES", 100)
    monkeypatch.setattr(GigatokenEncoder, "_load", lambda self: (loads.append(1), load(self)))
    encode = GigatokenEncoder(proto_of(encoder.model))
    for text, expected in [("a" * 101, 1), ("é" * 25, 2), ("b" * 50, 2), ("c", 3), ("d" * 500, 4), ("e", 5), ("", 5)]:
        assert encode(text).tolist() == encoder.model.encode(text)
        assert len(loads) == expected, text


def test_the_words_that_are_remembered_are_few_and_short(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "CACHED_WORDS", 5)
    encode = WordEncoder(encoder.model)
    text = " ".join(f"word{i % 13} {'long' * 9}" for i in range(200))
    assert encode(text).tolist() == encode(text).tolist() == encoder.model.encode(text)
    assert 0 < len(encode) <= 5
    assert max(map(len, encode)) <= fast.LONGEST_CACHED_WORD


MEMORY = """
import random, sys
from pathlib import Path
from tokenizer.models import fast
from tokenizer.models.sentencepiece import load_sentencepiece_model, proto_of

fast.GIGATOKEN_RELOAD_BYTES = int(sys.argv[2])
encode = fast.GigatokenEncoder(proto_of(load_sentencepiece_model(Path(sys.argv[1]))))
random.seed(0)

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

encode("warm")
before = kilobytes("VmRSS")
for _ in range(60):
    encode(random.randbytes(100_000).hex(" ", 3))
print((kilobytes("VmHWM") - before) // 1024)
"""


def test_memory_stays_bounded_on_words_that_never_come_again(sentencepiece_model: Path) -> None:
    grown = []
    for limit in (1 << 20, 1 << 30):
        command = [sys.executable, "-c", MEMORY, str(sentencepiece_model), str(limit)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        grown.append(int(ended.stdout))
    # 14 MB of words. A table of fixed size takes 24 MB, and as much again while a new one is loaded.
    assert grown[0] < 120 < 180 < grown[1], grown


THREADS = """
import os, sys
from pathlib import Path
from tokenizer.models.fast import load_encoder
from tokenizer.models.sentencepiece import load_sentencepiece_model

load_sentencepiece_model(Path(sys.argv[1])).encode("a")
before = len(os.listdir("/proc/self/task"))
encoder = load_encoder(Path(sys.argv[1]))
encoder.encode("the same words again and again " * 100_000)
print(encoder.name, before, len(os.listdir("/proc/self/task")), "awkward" in sys.modules, sep="|")
"""


def test_encoding_starts_no_thread_and_loads_nothing_heavy(sentencepiece_model: Path) -> None:
    command = [sys.executable, "-c", THREADS, str(sentencepiece_model)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    name, before, after, heavy = ended.stdout.strip().split("|")
    assert name.startswith("gigatoken")
    assert before == after
    assert heavy == "False"


def _encode_in_worker(path: Path, text: str) -> tuple[str, list[int]]:
    encoder = load_encoder(path)
    return encoder.name, encoder.encode(text).tolist()


def test_a_spawned_process_loads_its_own_and_gives_the_same(sentencepiece_model: Path, encoder: TextEncoder) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        name, ids = pool.submit(_encode_in_worker, sentencepiece_model, "def f(x): <s>").result(timeout=120)
    assert (name, ids) == (encoder.name, encoder.model.encode("def f(x): <s>"))
