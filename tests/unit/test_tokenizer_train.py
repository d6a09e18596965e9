import hashlib
import json
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.errors import DataError
from tokenizer import train
from tokenizer.cli import repeat_option
from tokenizer.cli import tokenizer as cli
from tokenizer.corpus import scan
from tokenizer.cutting import cut, cut_hard
from tokenizer.model import can_cut, load_tokenizer, tokenizer_sha256
from tokenizer.rejections import RejectionLog
from tokenizer.train import CONTROL_SYMBOLS, sample_texts, train_model, train_tokenizer

STDLIB = Path(sysconfig.get_paths()["stdlib"])
VOCAB = 600
NASTY = [
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


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer([corpus], VOCAB, tmp_path_factory.mktemp("trained") / "new" / "folder")


@pytest.mark.parametrize("text", NASTY)
def test_round_trip_is_lossless(trained: Path, text: str) -> None:
    model = load_tokenizer(trained)
    assert model.decode(model.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
def test_round_trip_of_any_text_is_lossless(trained: Path, text: str) -> None:
    model = load_tokenizer(trained)
    assert model.decode(model.encode(text)) == text


def test_the_one_character_that_does_not_come_back(trained: Path) -> None:
    # U+2581 is the sign by which SentencePiece itself writes a space.
    model = load_tokenizer(trained)
    assert model.decode(model.encode("a\u2581b")) == "a b"


def test_special_ids_are_fixed_and_text_never_becomes_one(trained: Path) -> None:
    model = load_tokenizer(trained)
    special = ["<unk>", "<s>", "</s>", "<pad>", *CONTROL_SYMBOLS]
    assert [model.id_to_piece(i) for i in range(len(special))] == special
    assert model.get_piece_size() == VOCAB
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, 3)
    assert all(model.is_control(i) for i in range(1, len(special)))
    # A joined text also covers what stands beside a symbol, as in "x</s>y".
    for text in [*NASTY, *special, "".join(special), "x".join(special)]:
        assert min(model.encode(text), default=len(special)) >= len(special)


def test_newlines_and_indentation_are_learned(trained: Path) -> None:
    model = load_tokenizer(trained)
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
    model = load_tokenizer(trained)
    assert [model.id_to_piece(i) for i in model.encode("1024")] == list("1024")


def test_same_arguments_give_the_same_bytes_on_any_number_of_threads(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = train_tokenizer([corpus], VOCAB, tmp_path / "again")
    assert again.read_bytes() == trained.read_bytes()
    monkeypatch.setitem(train.SETTINGS, "num_threads", 1)
    one = load_tokenizer(train_tokenizer([corpus], VOCAB, tmp_path / "one"))
    model = load_tokenizer(trained)
    ids = range(VOCAB)
    assert [(one.id_to_piece(i), one.get_score(i)) for i in ids] == [
        (model.id_to_piece(i), model.get_score(i)) for i in ids
    ]


def test_the_record_says_how_the_model_was_made(corpus: Path, trained: Path) -> None:
    record = json.loads((trained.parent / "training.json").read_text())
    assert record["sha256"] == tokenizer_sha256(trained) == hashlib.sha256(trained.read_bytes()).hexdigest()
    assert record["sentencepiece_version"] == sentencepiece.__version__
    assert record["settings"]["byte_fallback"] is True
    assert record["settings"]["vocab_size"] == VOCAB
    assert record["sample_documents"] == 26
    assert record["sample_bytes"] == sum(file.stat().st_size for file in corpus.iterdir())
    assert sorted(path.name for path in trained.parent.iterdir()) == ["tokenizer.model", "training.json"]


def test_a_sample_keeps_to_its_budget_and_follows_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:04d}" + "é" * 48}) + "\n" for i in range(1_000)))
    corpus = scan([path])

    def sample(budget: int, seed: int) -> list[int]:
        texts, used = sample_texts(corpus, budget, seed=seed, text_field="text", log=RejectionLog(0))
        assert used == 100 * len(texts)
        return [int(text[:4]) for text in texts]

    first = sample(20_000, seed=0)
    assert len(first) == 200
    assert first == sample(20_000, seed=0) != sample(20_000, seed=1)
    # Uniform over the corpus: each quarter gives about a quarter.
    assert all(35 <= sum(low <= i < low + 250 for i in first) <= 65 for low in (0, 250, 500, 750))
    assert sorted(sample(10**9, seed=0)) == list(range(1_000))


def test_long_documents_are_learned_from_to_their_end(tmp_path: Path) -> None:
    # One line of 40,000 characters without a space, then the only place where "qz" occurs.
    (tmp_path / "a.txt").write_text("ab" * 20_000 + "qzqzqzqzqzqz" * 2_000)
    model = load_tokenizer(train_tokenizer([tmp_path / "a.txt"], 285, tmp_path / "out"))
    assert "qz" in {model.id_to_piece(i) for i in range(285)}


@given(st.text(alphabet="ab \n\u2581漢", max_size=200), st.integers(1, 20))
@example("a b\u2581 c  d", 1)
def test_cutting_loses_nothing_and_cuts_only_before_a_space_after_a_non_space(text: str, size: int) -> None:
    parts = cut(text, size)
    assert "".join(parts) == text
    for before, after in pairwise(parts):
        assert after[0] == " " and before[-1] not in " \u2581"
        assert len(before) >= size
    hard = cut_hard(text, size)
    assert "".join(hard) == text
    assert all(len(part) <= 2 * size for part in hard)


@given(st.text(alphabet="ab :\n\u2581<s>漢\t1", max_size=60) | st.sampled_from(NASTY), st.integers(1, 8))
def test_ids_of_the_parts_are_the_ids_of_the_whole(trained: Path, text: str, size: int) -> None:
    model = load_tokenizer(trained)
    assert [token for part in cut(text, size) for token in model.encode(part)] == model.encode(text)


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
def test_models_for_which_cutting_may_change_ids_are_not_cut(
    trained: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    assert can_cut(load_tokenizer(trained))
    assert not can_cut(load_tokenizer(foreign(tmp_path / "m.model", **changes)))


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
        load_tokenizer(foreign(tmp_path / "m.model", **changes))


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"\x7fELF\x02", bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "m.model")


def test_a_missing_model_and_a_folder_are_refused(tmp_path: Path) -> None:
    for read in (load_tokenizer, tokenizer_sha256):
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
        train_tokenizer([corpus], VOCAB, tmp_path)
    assert "--overwrite" in str(caught.value)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"precious"
    train_tokenizer([corpus], 400, tmp_path, overwrite=True, sample_bytes=50_000)
    assert load_tokenizer(tmp_path / "tokenizer.model").get_piece_size() == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.model", "training.json"]


def test_a_failed_training_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"txt": "a"}\n' * 3)
    with pytest.raises(DataError, match="left out: 3 no text field"):
        train_tokenizer([tmp_path / "a.jsonl"], VOCAB, tmp_path / "out")
    with pytest.raises(DataError, match="more than max_bad_documents=2"):
        train_tokenizer([tmp_path / "a.jsonl"], VOCAB, tmp_path / "out", max_bad_documents=2)
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


def test_the_command_trains_and_prints_where_the_model_lies(corpus: Path, tmp_path: Path) -> None:
    files = [str(file) for file in sorted(corpus.glob("*.py"))[:3]]
    arguments = [
        "train",
        "--input",
        *files,
        "--vocab-size",
        "400",
        "--output",
        str(tmp_path),
        "--sample-megabytes",
        "0.1",
    ]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert str(tmp_path / "tokenizer.model") in result.output
    assert CliRunner().invoke(cli, ["train", "--vocab-size", "400", "--output", "x"]).exit_code == 2
