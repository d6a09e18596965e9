"""Training a SentencePiece model on a sample of a corpus.

1. `sample.py` draws text from each source, in chunks of about 4 kB cut before a space where possible, so that no
   sentence is over the trainer's limit (it drops those silently) and no word is cut.
2. SentencePiece trains on the chunks in memory.
3. The model is written beside `training.json` (how it was made) and `sample.digests` (of the texts it was made of, so that
   a later report can tell what it has seen).

What we found in SentencePiece 0.2.3: `sentence_iterator` keeps newlines inside a sentence, so pieces such as ":\\n" and
runs of spaces are learned, but strips newlines at a sentence's end, which costs each chunk at most the newline before a
cut. A sentence that holds U+2585 (its sign for an unknown character) is dropped whole: chunks are cut there, and the
character itself, which can be no piece, is counted.
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
from tokenizer.corpus.rejection_log import Problems
from tokenizer.corpus.task_plan import refuse_output_inside
from tokenizer.training.budget import Budget, SampleSource
from tokenizer.training.record import record_files, record_of
from tokenizer.training.sample import CHUNK_CHARACTERS, Progress, SourceSample, draw_samples, without_duplicates

MODEL_NAME = "tokenizer.model"
SAMPLE_BYTES = 100_000_000
HELD_OUT_BYTES = 2_000_000
CONTROL_SYMBOLS = ("<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(6)))
CHARACTER_COVERAGE = 0.9995
UNKNOWN_SIGN = "\u2585"

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
    "character_coverage": CHARACTER_COVERAGE,
    # Bytes; a chunk has at most 2 * CHUNK_CHARACTERS characters of at most 4 bytes.
    "max_sentence_length": 8 * CHUNK_CHARACTERS,
    # Pieces and scores were the same with 1, 2 and 16 threads, but the number is stored in the model: fixed, so that
    # its sha256 does not depend on the machine.
    "num_threads": 16,
}


class Training(NamedTuple):
    """A trained model: its file, what `training.json` says, what was held out, and what it took.

    `peak_bytes` is the largest memory of this process so far, reading and training together.
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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Train on `sample_bytes` of `sources` and write OUTPUT/tokenizer.model. Same arguments, same bytes.

    `source_bytes` sets the budget of single sources; `control_symbols` are reserved after the usual ones;
    `character_coverage` is the share of the sample's characters that get a piece. Raises DataError for an unusable corpus,
    a model that is already there, and a vocab_size that the sample does not allow.
    """
    path = output / MODEL_NAME
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already", hint="choose another --output, or replace it with --overwrite")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: the output must be a folder, and this is a file")
    symbols = check_control_symbols(control_symbols)
    refuse_output_inside([path for source in sources for path in source.inputs], output)
    started = time.monotonic()
    problems = Problems()
    samples = draw_samples(
        sources,
        options or ReadOptions(),
        budget=Budget(sample_bytes, source_bytes or {}),
        held_out_bytes=held_out_bytes,
        seed=seed,
        problems=problems,
        max_bad_documents=max_bad_documents,
        progress=progress,
    )
    duplicates = without_duplicates(samples)
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
        unknown_signs_left_out=sentences.signs,
        held_out_duplicates=duplicates,
        skipped=problems.counts,
    )
    _publish(output, {**record_files(record, samples), MODEL_NAME: model})
    return Training(path, record, samples, sampled - started, trained - sampled, _peak_bytes())


class Sentences:
    """The chunks of all samples as SentencePiece takes them, each cut where it holds UNKNOWN_SIGN; counts what it gave.

    Handed over one by one from memory: an exception inside the iterator would surface as an "INTERNAL" error of the C++
    side.
    """

    def __init__(self, samples: Sequence[SourceSample]) -> None:
        self._samples = samples
        self.count = self.signs = 0

    def __iter__(self) -> Iterator[str]:
        for sample in self._samples:
            for chunk in sample.chunks:
                parts = chunk.split(UNKNOWN_SIGN)
                self.signs += len(parts) - 1
                # A part of line breaks alone is empty to SentencePiece, which strips them.
                kept = [part for part in parts if part.strip("\r\n")]
                self.count += len(kept)
                yield from kept


def check_control_symbols(added: Sequence[str]) -> list[str]:
    """CONTROL_SYMBOLS and those that are `added`. Raises DataError for one that could not be told from text, or comes twice."""
    symbols = list(CONTROL_SYMBOLS)
    taken = {SETTINGS[f"{name}_piece"] for name in ("unk", "bos", "eos", "pad")}
    for symbol in added:
        if len(symbol) < 2 or not symbol.isprintable() or any(char.isspace() for char in symbol):
            raise DataError(
                f"the control symbol {symbol!a} has a space, an unprintable character, or a single one",
                hint="for example <|tool|>",
            )
        if symbol in taken or symbol in symbols or re.fullmatch("<0x[0-9A-F]{2}>", symbol):
            raise DataError(f"the control symbol {symbol} is there already", hint="name each new one once")
        symbols.append(symbol)
    return symbols


def train_model(sentences: Iterable[str], vocab_size: int, changes: Mapping[str, Any] | None = None) -> bytes:
    """A serialized SentencePiece model of `vocab_size` pieces; `changes` of SETTINGS.

    Raises DataError where `sentences` allow fewer pieces.
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


def _peak_bytes() -> int:
    # macOS counts bytes, Linux kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _publish(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` to `folder`, in this order; each is complete or absent. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            publish_file(folder / name, data)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
