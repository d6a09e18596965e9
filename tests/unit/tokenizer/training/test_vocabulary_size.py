"""Sizes of a vocabulary: a warning where a sample is too small for it, and help for a size in thousands."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pretrain.cli.cmd_tokenizer_train import train
from pretrain.errors import DataError
from tokenizer.models.base import read_tokenizer
from tokenizer.training.train_bpe import size_warning


@pytest.mark.parametrize(("vocab_size", "sample_bytes"), [(8_000, 3_200_000), (32_000, 100_000_000)])
def test_a_vocabulary_that_fits_its_sample_has_no_warning(vocab_size: int, sample_bytes: int) -> None:
    assert size_warning(vocab_size, sample_bytes) is None


def test_a_vocabulary_too_large_for_its_sample_has_a_warning_with_a_size() -> None:
    assert "--vocab-size 8000" in str(size_warning(32_000, 3_200_000))
    assert "--vocab-size" not in str(size_warning(4_000, 100_000))


def test_a_size_in_thousands_is_refused_with_the_numbers_it_may_mean() -> None:
    done = CliRunner().invoke(train, ["--input", "x", "--vocab-size", "32k", "--output", "y"])
    assert done.exit_code == click.UsageError.exit_code
    assert "32000 or 32768" in " ".join(done.output.split())


def test_a_folder_for_a_tokenizer_is_refused_with_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder") as caught:
        read_tokenizer(tmp_path)
    assert "no tokenizer.model or tokenizer.json" in str(caught.value.hint)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is a folder") as caught:
        read_tokenizer(tmp_path)
    assert str(caught.value.hint).endswith(str(tmp_path / "tokenizer.json"))
