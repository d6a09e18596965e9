"""Training a SentencePiece model on a sample of a corpus.

1. `sample.py` draws text from each source, in chunks of about 4 kB that end before a space if possible, so that no
   sentence exceeds the trainer's limit (it drops those silently) and no word is split.
2. SentencePiece trains on the chunks in memory.
3. The model is written with `training.json` (settings and sample sizes) and `sample.digests` (of the sampled texts, so that
   a later report can exclude them).

Observed in SentencePiece 0.2.3: `sentence_iterator` keeps newlines inside a sentence, so pieces such as ":\\n" and runs of
spaces are learned, but it strips newlines at a sentence's end, at most one per chunk. It drops a sentence that contains
U+2585, its mark for an unknown character: chunks are split there, and the character, which cannot become a piece, is
counted.
"""

import io
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.errors import DataError
from pretrain.storage.files import publish_file
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.corpus.task_plan import refuse_output_inside
from tokenizer.training.budget import Budget, SampleSource
from tokenizer.training.record import record_files, record_of
from tokenizer.training.sample import CHUNK_CHARACTERS, Progress, SourceSample, draw_samples, drop_held_out_duplicates

MODEL_NAME = "tokenizer.model"
SAMPLE_BYTES = 100_000_000
HELD_OUT_BYTES = 2_000_000
CONTROL_SYMBOLS = ("<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(6)))
CHARACTER_COVERAGE = 0.9995
# Python sources, bytes of sample a piece: share of pieces that occur in held-out text. 125: 18 %, 250: 31 %, 500: 50 %.
BYTES_PER_PIECE = 400
SMALLEST_ADVISED = 1_000  # below, the 256 bytes and the characters of the sample leave little for words
UNKNOWN_MARK = "\u2585"

# Lossless, and exportable with the same ids.
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
    # Never matched in a text, unlike user_defined_symbols.
    "control_symbols": list(CONTROL_SYMBOLS),
    # The rarest 0.05 % of the characters fall back to bytes: each would take up a piece that is hardly ever used.
    "character_coverage": CHARACTER_COVERAGE,
    # Bytes; a chunk has at most 2 * CHUNK_CHARACTERS characters of at most 4 bytes.
    "max_sentence_length": 8 * CHUNK_CHARACTERS,
    # Fixed, because it is stored in the model: its SHA-256 must not depend on the machine. The number has no effect on
    # pieces and scores (same with 1, 2 and 16 threads).
    "num_threads": 16,
}


class Training(NamedTuple):
    """A trained model: its file, the content of `training.json`, the samples, and the cost.

    `peak_bytes` is the peak memory of this process so far, sampling and training together.
    """

    path: Path
    record: dict[str, Any]
    samples: list[SourceSample]
    sampling_seconds: float
    training_seconds: float
    peak_bytes: int


def train_tokenizer(
    sources: Sequence[SampleSource],
    vocab_size: int,
    output: Path,
    *,
    sample_bytes: int = SAMPLE_BYTES,
    source_bytes: Mapping[str, int] | None = None,
    held_out_bytes: int = HELD_OUT_BYTES,
    control_symbols: Sequence[str] = (),
    character_coverage: float = CHARACTER_COVERAGE,
    seed: int = 0,
    options: ReadOptions | None = None,
    max_bad_documents: int = 100,
    max_bad_files: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Train on `sample_bytes` of `sources` and write OUTPUT/tokenizer.model. Deterministic, byte for byte.

    `source_bytes` sets the budget of single sources; `control_symbols` are added to CONTROL_SYMBOLS; `character_coverage`
    is the share of the sample's characters that get a piece. Raises DataError for an unusable corpus, an existing model
    without `overwrite`, and a vocab_size that the sample does not allow.
    """
    path = output / MODEL_NAME
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already", hint="choose another --output, or replace it with --overwrite")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file, and the output must be a folder", hint="choose another --output")
    symbols = check_control_symbols(control_symbols)
    refuse_output_inside([path for source in sources for path in source.inputs], output)
    started = time.monotonic()
    problems = RejectionLog()
    samples = draw_samples(
        sources,
        options or ReadOptions(),
        budget=Budget(sample_bytes, source_bytes or {}),
        held_out_bytes=held_out_bytes,
        seed=seed,
        problems=problems,
        max_bad_documents=max_bad_documents,
        max_bad_files=max_bad_files,
        progress=progress,
    )
    duplicates = drop_held_out_duplicates(samples)
    if not any(sample.chunks for sample in samples):
        raise DataError(
            f"no text to train on in {', '.join(path for source in sources for path in source.inputs)}{problems.summary()}"
        )
    sampled = time.monotonic()
    sentences = Sentences(samples)
    if progress is not None:
        progress(f"training on {sum(sample.bytes for sample in samples) / 1e6:,.1f} MB", 0, 0)
    changes = {"control_symbols": symbols, "character_coverage": character_coverage}
    model = train_model(sentences, vocab_size, changes)
    trained = time.monotonic()
    record = record_of(
        model,
        samples,
        settings={**SETTINGS, **changes, "vocab_size": vocab_size},
        seed=seed,
        sentences=sentences.count,
        unknown_signs_left_out=sentences.unknown_marks,
        held_out_duplicates=duplicates,
        skipped=problems.counts,
    )
    _publish(output, {**record_files(record, samples), MODEL_NAME: model})
    return Training(path, record, samples, sampled - started, trained - sampled, _peak_bytes())


def size_warning(vocab_size: int, sample_bytes: int) -> str | None:
    """Warning of a vocabulary too large for its sample: most pieces are then too rare for a model to learn."""
    if sample_bytes >= BYTES_PER_PIECE * vocab_size:
        return None
    fitting = sample_bytes // BYTES_PER_PIECE
    smaller = f", or --vocab-size {fitting}" if fitting >= SMALLEST_ADVISED else ""
    return f"{vocab_size:,} pieces for {sample_bytes / 1e6:,.1f} MB of text: most will be rare; train on more text{smaller}"


class Sentences:
    """Iterates over the chunks of all samples, split at UNKNOWN_MARK; counts sentences and marks.

    Iterates from memory only: SentencePiece reports an exception inside the iterator as an "INTERNAL" C++ error.
    """

    def __init__(self, samples: Sequence[SourceSample]) -> None:
        self._samples = samples
        self.count = self.unknown_marks = 0

    def __iter__(self) -> Iterator[str]:
        for sample in self._samples:
            for chunk in sample.chunks:
                parts = chunk.split(UNKNOWN_MARK)
                self.unknown_marks += len(parts) - 1
                # SentencePiece strips line breaks, so a part of nothing else is empty.
                kept = [part for part in parts if part.strip("\r\n")]
                self.count += len(kept)
                yield from kept


def check_control_symbols(added: Sequence[str]) -> list[str]:
    """CONTROL_SYMBOLS and `added`. Raises DataError for a symbol that is too like text, or a duplicate."""
    symbols = list(CONTROL_SYMBOLS)
    taken = {SETTINGS[f"{name}_piece"] for name in ("unk", "bos", "eos", "pad")}
    for symbol in added:
        if len(symbol) < 2 or not symbol.isprintable() or any(char.isspace() for char in symbol):
            raise DataError(
                f"control symbol {symbol!a}: must have two characters or more, all printable, and no space",
                hint="for example --control-symbol '<|tool|>'",
            )
        if symbol in taken or symbol in symbols or re.fullmatch("<0x[0-9A-F]{2}>", symbol):
            raise DataError(f"control symbol {symbol}: exists already", hint="give each new symbol once")
        symbols.append(symbol)
    return symbols


def train_model(sentences: Iterable[str], vocab_size: int, changes: Mapping[str, Any] | None = None) -> bytes:
    """Train a SentencePiece model of `vocab_size` pieces with SETTINGS and `changes` to them; returns its bytes.

    Raises DataError if `vocab_size` is too large or too small for `sentences`.
    """
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=vocab_size,
            minloglevel=2,
            **{**SETTINGS, **(changes or {})},
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from None
    return written.getvalue()


def _training_error(message: str, vocab_size: int) -> DataError:
    """The error to raise for a message of SentencePiece's trainer."""
    if match := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is more than this corpus allows: at most {match[1]} pieces",
            hint=f"train on more text, or use --vocab-size {match[1]} or less",
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"vocab_size={vocab_size} is too small: bytes, special symbols and characters alone take {match[1]} pieces",
            hint=f"use a --vocab-size well above {match[1]}",
        )
    return DataError(f"SentencePiece cannot train vocab_size={vocab_size} on this corpus: {message}")


def _peak_bytes() -> int:
    # macOS counts bytes, Linux kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _publish(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` to `folder` in this order; each is replaced atomically. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            publish_file(folder / name, data)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
