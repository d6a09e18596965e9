import hashlib
import io
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pretrain.cli.cmd_tokenizer import repeat_option
from pretrain.errors import DataError
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.sentencepiece import load_sentencepiece_model, proto_of, why_not_split
from tokenizer.models.splitting import split_at_spaces, split_hard
from tokenizer.training import train_bpe as train
from tokenizer.training.budget import SampleSource
from tokenizer.training.sample import CHUNK_CHARACTERS, SourceSample
from tokenizer.training.train_bpe import CONTROL_SYMBOLS, Sentences, Training, train_model, train_tokenizer

STDLIB = Path(sysconfig.get_paths()["stdlib"])
VOCAB = 600
HARD_TEXTS = [
    "",
    " ",
    "    leading and trailing    ",
    "a  b   c\t\td\n\n\n    e\r\nf\rg\v\f\x01\x7f",
    "\ufeffBOM, \u00a0nbsp, \u2003em space, \u200bzero width, \u2028line, \u0085nel",
    "e\u0301 vs \u00e9, \u1100\u1161, ﬁ ligature, Å vs A\u030a, ½ ² ﷺ",
    "עברית وعربي \u202eoverride\u202c",
    "👩‍👩‍👧‍👦🏳️‍🌈🇫🇷 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    "漢字かな交じり文。" * 20,
    "1234567890 3.14159 0x1F",
    "<s> </s> <unk> <pad> <|im_start|>user <|reserved_0|> <0x0A> <0xFF>",
    "<s></s>" * 3,
    " ⁇ ▂▃▅",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for file in sorted(STDLIB.glob("*.py"))[:25]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "spelled.txt").write_text("<s> </s> <pad> <|im_start|> 1024 2048 " * 500)
    return folder


def train_on(*paths: Path, vocab_size: int = VOCAB, output: Path, **options: Any) -> Training:
    return train_tokenizer([SampleSource("corpus", tuple(map(str, paths)))], vocab_size, output, **options)


@pytest.fixture(scope="module")
def training(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train_on(corpus, output=tmp_path_factory.mktemp("trained") / "new" / "folder")


@pytest.fixture(scope="module")
def trained(training: Training) -> Path:
    return training.path


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_round_trip_is_lossless(trained: Path, text: str) -> None:
    model = load_sentencepiece_model(trained)
    assert model.decode(model.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
def test_round_trip_of_any_text_is_lossless(trained: Path, text: str) -> None:
    model = load_sentencepiece_model(trained)
    assert model.decode(model.encode(text)) == text


def test_the_one_character_that_does_not_come_back(trained: Path) -> None:
    # U+2581 is the sign by which SentencePiece itself writes a space.
    model = load_sentencepiece_model(trained)
    assert model.decode(model.encode("a\u2581b")) == "a b"


def test_special_ids_are_fixed_and_text_never_becomes_one(trained: Path) -> None:
    model = load_sentencepiece_model(trained)
    special = ["<unk>", "<s>", "</s>", "<pad>", *CONTROL_SYMBOLS]
    assert [model.id_to_piece(i) for i in range(len(special))] == special
    assert model.get_piece_size() == VOCAB
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, 3)
    assert all(model.is_control(i) for i in range(1, len(special)))
    # A joined text also covers what stands beside a symbol, as in "x</s>y".
    for text in [*HARD_TEXTS, *special, "".join(special), "x".join(special)]:
        assert min(model.encode(text), default=len(special)) >= len(special)


def test_newlines_and_indentation_are_learned(trained: Path) -> None:
    model = load_sentencepiece_model(trained)
    pieces = {model.id_to_piece(i) for i in range(model.get_piece_size())}
    assert {"\n", "\n\n", ":\n", "▁▁▁▁", "▁▁▁▁▁▁▁▁"} <= pieces
    assert [model.id_to_piece(i) for i in model.encode("    self:\n        self")] == [
        "▁▁▁▁",
        "self",
        ":\n",
        "▁▁▁▁▁▁▁▁",
        "self",
    ]


def test_digits_are_split(trained: Path) -> None:
    model = load_sentencepiece_model(trained)
    assert [model.id_to_piece(i) for i in model.encode("1024")] == list("1024")


def test_same_arguments_give_the_same_bytes_on_any_number_of_threads(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = train_on(corpus, output=tmp_path / "again").path.parent
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in trained.parent.iterdir())
    monkeypatch.setitem(train.SETTINGS, "num_threads", 1)
    one = load_sentencepiece_model(train_on(corpus, output=tmp_path / "one").path)
    model = load_sentencepiece_model(trained)
    ids = range(VOCAB)
    assert [(one.id_to_piece(i), one.get_score(i)) for i in ids] == [
        (model.id_to_piece(i), model.get_score(i)) for i in ids
    ]


def test_the_record_says_how_the_model_was_made(corpus: Path, training: Training) -> None:
    folder = training.path.parent
    record = json.loads((folder / "training.json").read_text())
    assert record == training.record
    assert record["sha256"] == tokenizer_sha256(training.path) == hashlib.sha256(training.path.read_bytes()).hexdigest()
    assert record["sentencepiece_version"] == sentencepiece.__version__
    assert record["settings"]["byte_fallback"] is True
    assert record["settings"]["vocab_size"] == VOCAB
    sizes = [file.stat().st_size for file in corpus.iterdir()]
    source = record["sources"]["corpus"]
    assert source["whole"] and source["documents_read"] == len(sizes) and source["bytes_read"] == sum(sizes)
    # Of a corpus below the budget, at most a twentieth is held out.
    held_out = sum(len(text.encode()) for text in training.samples[0].held_out)
    assert 0 < held_out <= sum(sizes) * 0.05
    assert record["sample_bytes"] == source["bytes"] == sum(sizes) - held_out
    assert record["sample_documents"] == len(sizes) - source["held_out_documents"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "sample.digests",
        "tokenizer.model",
        "training.json",
    ]
    digests = (folder / "sample.digests").read_bytes()
    sampled = {hashlib.sha256(file.read_bytes()).digest()[:8] for file in corpus.iterdir()}
    sampled -= {hashlib.sha256(text.encode()).digest()[:8] for text in training.samples[0].held_out}
    assert digests == b"".join(sorted(sampled))


def log_of_training(texts: Sequence[str], capfd: pytest.CaptureFixture[str], **changes: object) -> tuple[str, int]:
    """What SentencePiece itself says while it trains on `texts`, and how many sentences it was given."""
    capfd.readouterr()
    sample = SourceSample("a", 0, chunks=[chunk for text in texts for chunk in split_hard(text, CHUNK_CHARACTERS)])
    sentences = Sentences([sample])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=io.BytesIO(),
        minloglevel=0,
        **{**train.SETTINGS, "vocab_size": 400, "hard_vocab_limit": False, **changes},
    )
    return capfd.readouterr().err, sentences.count


def test_sentencepiece_drops_nothing_of_what_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["漢字" * 30_000, "a b " * 20_000, "load ▅▆▅ average\n" * 40, "▅", "\n\n▅\n", "\r\n", *HARD_TEXTS[1:]]
    log, given = log_of_training(texts, capfd)
    assert f"Done! preprocessed {given} sentences" in log
    assert "kipped" not in log and "too long" not in log
    # How it says so when it does, so that this test can fail.
    log, given = log_of_training(["aa bb " * 100, "cc"], capfd, max_sentence_length=400)
    assert "Skipped 1 too long sentences" in log and f"Done! preprocessed {given - 1} sentences" in log


def test_a_text_with_the_sign_of_the_unknown_is_learned_around_it_and_the_sign_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("zebra ▅ zebra ▅▅ " * 300)
    training = train_on(tmp_path / "a.txt", vocab_size=285, output=tmp_path / "out")
    assert training.record["unknown_signs_left_out"] == 900
    model = load_sentencepiece_model(training.path)
    pieces = {model.id_to_piece(i) for i in range(285)}
    assert "▁zebra" in pieces and "▅" not in pieces
    assert model.decode(model.encode("a ▅ zebra")) == "a ▅ zebra"


def test_rare_characters_get_a_piece_where_all_are_to_be_covered(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 2_000 + "漢字")
    for coverage, covered in ((0.9995, False), (1.0, True)):
        output = tmp_path.parent / f"out-{tmp_path.name}-{covered}"
        training = train_on(tmp_path / "a.txt", vocab_size=300, output=output, character_coverage=coverage)
        model = load_sentencepiece_model(training.path)
        assert ("漢" in {model.id_to_piece(i) for i in range(300)}) == covered
        assert training.record["settings"]["character_coverage"] == coverage


def test_control_symbols_are_added_after_the_usual_ones(corpus: Path, tmp_path: Path) -> None:
    added = ["<|tool|>", "<|a,b|>", '<|"q"|>']
    model = load_sentencepiece_model(train_on(corpus, output=tmp_path / "m", control_symbols=added).path)
    assert [model.id_to_piece(i) for i in range(4, 15)] == [*CONTROL_SYMBOLS, *added]
    assert all(model.is_control(i) for i in range(4, 15))
    assert min(model.encode("".join(added))) >= 15


@pytest.mark.parametrize("symbol", ["", "x", "a b", "a\nb", "a\u200bb", "<s>", "<|im_end|>", "<unk>", "<0x0A>"])
def test_a_control_symbol_that_text_could_be_or_that_is_there_is_refused(tmp_path: Path, symbol: str) -> None:
    with pytest.raises(DataError, match="control symbol"):
        train_on(tmp_path, output=tmp_path.parent / "never", control_symbols=[symbol])
    with pytest.raises(DataError, match="exists already"):
        train_on(tmp_path, output=tmp_path.parent / "never", control_symbols=["<|x|>", "<|x|>"])


def test_long_documents_are_learned_from_to_their_end(tmp_path: Path) -> None:
    # One line of 40,000 characters without a space, then the only place where "qz" occurs.
    (tmp_path / "a.txt").write_text("ab" * 20_000 + "qzqzqzqzqzqz" * 2_000)
    model = load_sentencepiece_model(train_on(tmp_path / "a.txt", vocab_size=285, output=tmp_path / "out").path)
    assert "qz" in {model.id_to_piece(i) for i in range(285)}


@given(st.text(alphabet="ab :\n\u2581<s>漢\t1", max_size=60) | st.sampled_from(HARD_TEXTS), st.integers(1, 8))
def test_ids_of_the_parts_are_the_ids_of_the_whole(trained: Path, text: str, size: int) -> None:
    model = load_sentencepiece_model(trained)
    assert [token for part in split_at_spaces(text, size) for token in model.encode(part)] == model.encode(text)


def foreign(path: Path, **changes: object) -> Path:
    """A model with other settings than ours."""
    settings = {**train.SETTINGS, "vocab_size": 400, "hard_vocab_limit": False, **changes}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat, of the, in the, on the"] * 50),
            model_writer=file,
            minloglevel=2,
            **settings,
        )
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"split_by_whitespace": False},
        {"treat_whitespace_as_suffix": True},
        {"model_type": "unigram"},
    ],
)
def test_models_for_which_splitting_may_change_ids_are_not_split(
    trained: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    assert not why_not_split(proto_of(load_sentencepiece_model(trained)))
    assert why_not_split(proto_of(load_sentencepiece_model(foreign(tmp_path / "m.model", **changes))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_fallback": False}, "has no byte_fallback"),
        ({"bos_id": -1}, "has no bos id"),
        ({"eos_id": -1}, "has no eos id"),
    ],
)
def test_a_model_that_would_lose_something_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_sentencepiece_model(foreign(tmp_path / "m.model", **changes))


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"\x7fELF\x02", bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_sentencepiece_model(tmp_path / "m.model")


def test_a_missing_model_and_a_folder_are_refused(tmp_path: Path) -> None:
    for read in (load_sentencepiece_model, tokenizer_sha256):
        with pytest.raises(DataError, match="no such tokenizer"):
            read(tmp_path / "m.model")
        with pytest.raises(DataError, match="is a folder"):
            read(tmp_path)


def test_a_vocabulary_that_the_corpus_does_not_allow_says_what_it_allows() -> None:
    sentences = ["the cat sat on the mat"] * 50
    with pytest.raises(DataError, match=r"vocab_size=5000 is more than this corpus allows: at most (\d+)") as caught:
        train_model(sentences, 5_000)
    allowed = int(str(caught.value).split("at most ")[1].split()[0])
    assert train_model(sentences, allowed)
    with pytest.raises(DataError, match="vocab_size=100 is too small"):
        train_model(sentences, 100)


def test_an_existing_model_is_replaced_only_on_request(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists already") as caught:
        train_on(corpus, output=tmp_path)
    assert "--overwrite" in str(caught.value)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"precious"
    train_on(corpus, vocab_size=400, output=tmp_path, overwrite=True, sample_bytes=50_000)
    assert load_sentencepiece_model(tmp_path / "tokenizer.model").get_piece_size() == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sample.digests",
        "tokenizer.model",
        "training.json",
    ]


def test_a_failed_training_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"txt": "a"}\n' * 3)
    with pytest.raises(DataError, match="left out: 3 no text field"):
        train_on(tmp_path / "a.jsonl", output=tmp_path / "out")
    with pytest.raises(DataError, match="more than max_bad_documents=2"):
        train_on(tmp_path / "a.jsonl", output=tmp_path / "out", max_bad_documents=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("--input a b c --seed 1", "--input a --input b --input c --seed 1"),
        ("--seed 1 --input a --input b", "--seed 1 --input a --input b"),
        ("--input a b --output d --input=c e", "--input a --input b --output d --input=c --input e"),
        ("--overwrite --input a", "--overwrite --input a"),
        ("--input - x", "--input - --input x"),
        ("--input --seed 1", "--input --seed 1"),
    ],
)
def test_input_takes_several_paths(written: str, understood: str) -> None:
    assert repeat_option(written.split(), "--input") == understood.split()
