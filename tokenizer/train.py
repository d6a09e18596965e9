"""Training a SentencePiece model on a sample of a corpus.

1. References to the documents are shuffled (by a seed), and documents read in that order until `sample_bytes` of text.
2. Each is cut into chunks of about 4 kB, before a space where possible, so no sentence is over the trainer's limit (it
   drops those silently) and no word is cut.
3. SentencePiece trains on the chunks in memory, and the model is written beside `training.json` (how it was made).

What we found in SentencePiece 0.2.3: `sentence_iterator` keeps newlines inside a sentence, so pieces such as ":\\n" and
runs of spaces are learned, but strips newlines at a sentence's end, which costs each chunk at most the newline before a
cut.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.data.manifest import sync_folder
from pretrain.errors import DataError
from tokenizer.corpus import Corpus, read_text, refuse_output_inside, scan, shuffled
from tokenizer.cutting import cut_hard
from tokenizer.rejections import Rejection, RejectionLog

MODEL_NAME = "tokenizer.model"
RECORD_NAME = "training.json"
CONTROL_SYMBOLS = ("<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(6)))
CHUNK_CHARACTERS = 4096

# Lossless, and exportable id for id. Control symbols are never found in a text (user_defined_symbols would be).
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
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
    "unk_piece": "<unk>",
    "bos_piece": "<s>",
    "eos_piece": "</s>",
    "pad_piece": "<pad>",
    "control_symbols": list(CONTROL_SYMBOLS),
    # The rarest 0.05 % of the characters fall back to bytes: each would take a piece that is hardly ever used.
    "character_coverage": 0.9995,
    # Bytes; a chunk has at most 2 * CHUNK_CHARACTERS characters of at most 4 bytes.
    "max_sentence_length": 8 * CHUNK_CHARACTERS,
    # Pieces and scores were the same with 1, 2 and 16 threads, but the number is stored in the model: fixed, so that
    # its sha256 does not depend on the machine.
    "num_threads": 16,
}


def train_tokenizer(
    inputs: Sequence[Path],
    vocab_size: int,
    output: Path,
    *,
    sample_bytes: int = 100_000_000,
    seed: int = 0,
    text_field: str = "text",
    max_bad_documents: int = 100,
    overwrite: bool = False,
) -> Path:
    """Train on about `sample_bytes` of `inputs`; returns the path of OUTPUT/tokenizer.model. Same arguments, same
    bytes.

    Raises DataError for an unusable corpus, a model that is already there, and a vocab_size that the sample does not
    allow.
    """
    path = output / MODEL_NAME
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already", hint="choose another --output, or replace it with --overwrite")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: the output must be a folder, and this is a file")
    refuse_output_inside(inputs, output)
    corpus = scan(inputs)
    log = RejectionLog(max_bad_documents)
    log.add(corpus.rejections)
    texts, used = sample_texts(corpus, sample_bytes, seed=seed, text_field=text_field, log=log)
    if not texts:
        raise DataError(f"no text to train on in {', '.join(map(str, inputs))}{log.summary()}")
    model = train_model([chunk for text in texts for chunk in cut_hard(text, CHUNK_CHARACTERS)], vocab_size)
    record = {
        "settings": {**SETTINGS, "vocab_size": vocab_size},
        "sentencepiece_version": _sentencepiece_version(),
        "sha256": hashlib.sha256(model).hexdigest(),
        "seed": seed,
        "sample_bytes": used,
        "sample_documents": len(texts),
        "corpus_documents": len(corpus),
        "skipped": log.counts,
    }
    _publish(output, {RECORD_NAME: (json.dumps(record, indent=1) + "\n").encode(), MODEL_NAME: model})
    return path


def sample_texts(
    corpus: Corpus, sample_bytes: int, *, seed: int, text_field: str, log: RejectionLog
) -> tuple[list[str], int]:
    """Whole documents drawn uniformly until they hold `sample_bytes` of UTF-8 (or all there are), and their bytes."""
    texts: list[str] = []
    used = 0
    for position in shuffled(len(corpus), seed):
        if used >= sample_bytes:
            break
        text = read_text(corpus.document(position), text_field=text_field)
        if isinstance(text, Rejection):
            log.add([text])
            continue
        texts.append(text)
        used += len(text.encode())
    return texts, used


def train_model(sentences: Sequence[str], vocab_size: int) -> bytes:
    """A serialized SentencePiece model of `vocab_size` pieces. Raises DataError where `sentences` allow fewer."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # From memory, since an exception inside the iterator would surface as an "INTERNAL" error of the C++ side.
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=vocab_size,
            minloglevel=2,
            **SETTINGS,
        )
    except RuntimeError as error:
        raise _explain(str(error), vocab_size) from None
    return written.getvalue()


def _explain(message: str, vocab_size: int) -> DataError:
    """What to tell the user for an error of SentencePiece's trainer."""
    if match := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is more than this corpus allows: at most {match[1]} pieces can be made of it",
            hint="train on more text, or ask for a smaller vocabulary",
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is too small: bytes, special symbols and characters alone take {match[1]}",
            hint=f"ask for clearly more than {match[1]}",
        )
    return DataError(f"SentencePiece cannot train vocab_size={vocab_size} on this corpus: {message}")


def _sentencepiece_version() -> str:
    import sentencepiece

    return str(sentencepiece.__version__)


def _publish(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` to `folder` durably; each appears whole or not at all, the last one last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".train-", dir=folder))
        try:
            for name, data in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            for name in files:
                (temporary / name).replace(folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
