"""`encode --holdout`: two corpora of one input, that share no text and together have all of it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pretrain.cli.cmd_tokenizer import tokenizer as cli
from pretrain.errors import DataError
from pretrain.shards.manifest_file import read_manifest
from tests.support.encoded import TEXTS, documents_of, files_of, write_jsonl
from tokenizer.encoding.encode_options import EncodeOptions
from tokenizer.encoding.holdout import left_out
from tokenizer.models.sentencepiece import load_sentencepiece_model


def encode(tokenizer: Path, inputs: list[Path], output: Path, *options: str) -> Result:
    arguments = ["encode", "--tokenizer", tokenizer, "--output", output, "--workers", "1", *options, "--input", *inputs]
    return CliRunner().invoke(cli, [str(part) for part in arguments], catch_exceptions=False)


def test_no_text_is_on_both_sides_and_none_is_missing(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*TEXTS, *TEXTS[::-1]])  # each text twice
    done = encode(tokenizer, [corpus], tmp_path / "out", "--holdout", "25%")
    assert done.exit_code == 0 and "left out: held out" in done.output and "left out: trained on" in done.output
    model, texts = load_sentencepiece_model(tokenizer), {}
    for part in ("train", "valid"):
        folder = tmp_path / "out" / part
        texts[part] = [model.decode(document) for document in documents_of(folder, read_manifest(folder))]
    assert sorted(texts["train"] + texts["valid"]) == sorted(2 * TEXTS)
    assert not set(texts["train"]) & set(texts["valid"])
    assert 8 < len(set(texts["valid"])) < 24
    again = encode(tokenizer, [corpus], tmp_path / "out", "--holdout", "0.25")
    assert again.output.count("encoded before, with these options") == 2
    other = [*("--holdout", "30%"), "--overwrite"]
    assert encode(tokenizer, [corpus], tmp_path / "out", *other).exit_code == 0
    # The larger share has all that the smaller one has.
    folder = tmp_path / "out" / "valid"
    more = {model.decode(document) for document in documents_of(folder, read_manifest(folder))}
    assert more > set(texts["valid"])


def test_an_array_writes_the_same_two_corpora(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl")
    options = ["--holdout", "25%", "--task-megabytes", "0.005", "--deduplicate"]
    encode(tokenizer, [corpus], tmp_path / "whole", *options)
    for _ in range(2):  # hashed, then encoded
        for task in ("0", "1"):
            encode(tokenizer, [corpus], tmp_path / "array", *options, "--task-id", task, "--num-tasks", "2")
        encode(tokenizer, [corpus], tmp_path / "array", *options, "--merge")
    for part in ("train", "valid"):
        assert files_of(tmp_path / "array" / part) == files_of(tmp_path / "whole" / part)


def test_about_the_share_is_held_out_and_a_text_is_in_one_part() -> None:
    texts = [f"text {n}" for n in range(10_000)]
    held = [text for text in texts if not left_out(text, 0.02, "valid")]
    assert 150 < len(held) < 250
    assert held == [text for text in texts if left_out(text, 0.02, "train") == "held out"]
    assert not any(left_out(text, 0.0, "") for text in texts)


@pytest.mark.parametrize("share", ["0", "100%", "half", "-1%", "nan", ""])
def test_a_share_that_makes_no_sense_ends_with_2(tokenizer: Path, tmp_path: Path, share: str) -> None:
    done = encode(tokenizer, [write_jsonl(tmp_path / "a.jsonl")], tmp_path / "out", "--holdout", share)
    assert done.exit_code == 2 and "Write 0.5% or 0.005" in done.output and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="holdout=1 is not between 0 and 1"):
        EncodeOptions(holdout=1.0, part="valid")


def test_nothing_held_out_is_an_error_that_says_what_to_do(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", TEXTS[4:7])
    with pytest.raises(
        DataError, match=r"no document of the corpus can be used; left out: 3 trained on\n.*--holdout 5%"
    ):
        encode(tokenizer, [corpus], tmp_path / "out", "--holdout", "0.0001%")
