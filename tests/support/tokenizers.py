"""Small SentencePiece models, trained on the standard library's own sources. No downloads, the same bytes each time."""

import io
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

CONTROL_SYMBOLS = ["<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(6))]
STDLIB = Path(sysconfig.get_paths()["stdlib"])


def source_chunks(total_bytes: int = 400_000, chunk_chars: int = 4_000) -> Iterator[str]:
    """About `total_bytes` of Python sources, in chunks that stay below SentencePiece's sentence limit."""
    read = 0
    for file in sorted(STDLIB.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        for start in range(0, len(text), chunk_chars):
            yield text[start : start + chunk_chars]
        read += len(text)
        if read >= total_bytes:
            return


def train_sentencepiece(
    path: Path, vocab_size: int = 1_000, texts: Iterable[str] | None = None, **changes: Any
) -> Path:
    """Write a BPE model with the settings of `tokenizer train` to `path`; `changes` override single options."""
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": vocab_size,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 3,
        "control_symbols": CONTROL_SYMBOLS,
        "character_coverage": 0.9999,
        "max_sentence_length": 1 << 20,
        "num_threads": 1,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(source_chunks() if texts is None else texts), model_writer=model, **(options | changes)
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session", name="sentencepiece_model")
def sentencepiece_model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1,009 pieces: an odd size, so that nothing may rely on a round one."""
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=1_009)
