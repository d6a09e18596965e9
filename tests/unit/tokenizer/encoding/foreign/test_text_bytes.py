from pathlib import Path

import pytest

from pretrain.errors import DataError
from tests.support.foreign_tars import (
    EOS,
    good_tar,
    index,
)
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tokenizer.encoding.foreign.framing import FramingOptions
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.sentencepiece import load_sentencepiece_model

TEXTS = ["def f(x):\n    return x  # ü中\U0001f600\n", "  two  spaces\t", "\u2581 is a character too? \x00\x7f", "1234"]


def test_a_tokenizer_tells_how_much_text_there_is(tmp_path: Path, sentencepiece_model: Path) -> None:
    model = load_sentencepiece_model(sentencepiece_model)
    texts = [text.replace("\u2581", "") for text in TEXTS]
    documents = [[model.bos_id(), *model.encode(text), model.eos_id()] for text in texts]
    assert [model.decode(ids) for ids in documents] == texts
    reading = FramingOptions(vocab_size=model.get_piece_size(), eos_id=model.eos_id(), bos_id=model.bos_id())
    tar = good_tar(tmp_path / "a.tar", documents)
    manifest = index(tar, tmp_path / "out", reading, tokenizer=sentencepiece_model).manifest
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    assert manifest.tokenizer_sha256 == tokenizer_sha256(sentencepiece_model)


def test_ids_beyond_the_tokenizer_are_refused_also_where_the_model_has_rows_for_them(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    tar = good_tar(tmp_path / "a.tar", [[5, 1_009]])
    reading = FramingOptions(vocab_size=1_024, eos_id=EOS)
    assert index(tar, tmp_path / "one", reading).manifest.vocab_size == 1_024
    with pytest.raises(DataError, match=r"1009 at position 1, not between 0 and 1008"):
        index(tar, tmp_path / "out", reading, tokenizer=sentencepiece_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1_008}, r"vocab_size=1008, and .* has 1009 tokens\n.*hint: --vocab-size 1009"),
        ({"eos_id": 0}, r"eos_id=0, and .* has 2\n.*hint: --eos-id 2"),
        ({"bos_id": 0}, r"bos_id=0, and .* has 1\n.*hint: --bos-id 1"),
    ],
)
def test_a_tokenizer_that_contradicts_the_options_is_refused(
    tmp_path: Path, sentencepiece_model: Path, change: dict[str, int], message: str
) -> None:
    reading = FramingOptions(**{"vocab_size": 1_009, "eos_id": EOS, **change})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        index(good_tar(tmp_path / "a.tar"), tmp_path / "out", reading, tokenizer=sentencepiece_model)
    assert not (tmp_path / "out").exists()
