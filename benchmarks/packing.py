"""How full packed bins are, how many documents are cut, and what packing costs, against concatenating and cutting.

Two corpora, in the order in which `pretrain tokenizer encode` writes them:

    standard library  the sources and documentation of this machine's Python, encoded with a tokenizer trained on them
    web-like          lengths drawn from a log-normal distribution (median 400 tokens, mean 820); the ids are all the same

`python benchmarks/packing.py [--seq-len 512 2048 8192] [--vocab-size 8000] [--tokens 20e6]`
"""

import argparse
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.cli.quickstart.stdlib_corpus import write_corpus
from pretrain.shards.packed_writer import BinWriter
from pretrain.shards.writer import ShardWriter, clear_output
from tokenizer.corpus.readers import Document, ReadOptions, read_documents
from tokenizer.corpus.task_plan import plan_tasks
from tokenizer.encoding.shuffle import shuffled
from tokenizer.models.fast import load_encoder
from tokenizer.training.budget import SampleSource
from tokenizer.training.train_bpe import train_tokenizer

PAD = 3
WEB_LIKE_VOCAB = 32_000


class Row(NamedTuple):
    corpus: str
    seq_len: int
    stream_cut: float  # share of the documents
    stream_needless: float  # share of the documents that is cut, and would fit into one sequence; packed: none
    packed_cut: float
    filled: float
    targets: float  # trained on, for each token of the corpus
    stream_speed: float  # tokens of the corpus a CPU second, from ids to shards
    packed_speed: float


class Corpus(NamedTuple):
    """Documents one after the other, bos and eos included."""

    ids: np.ndarray
    lengths: np.ndarray
    vocab_size: int
    about: str


def standard_library(scratch: Path, vocab_size: int) -> Corpus:
    write_corpus(scratch / "corpus")
    inputs = [scratch / "corpus" / "train.jsonl"]
    source = SampleSource("standard-library", tuple(map(str, inputs)))
    model = train_tokenizer([source], vocab_size, scratch / "tokenizer", sample_bytes=5_000_000).path
    started = time.process_time()
    encoder, found = load_encoder(model), []
    bos, eos = encoder.model.bos_id(), encoder.model.eos_id()
    for task in plan_tasks([str(path) for path in inputs], ReadOptions()).tasks:
        for document in read_documents(task, ReadOptions()):
            if isinstance(document, Document):
                found.append(np.concatenate([[bos], encoder.encode(document.text), [eos]]).astype(np.int32))
    seconds = time.process_time() - started
    found = [found[position] for position in shuffled(len(found), 0)]
    ids, lengths = np.concatenate(found), np.array([len(document) for document in found])
    return Corpus(ids, lengths, vocab_size, f"encoded at {len(ids) / seconds / 1e6:.1f} million tokens a CPU second")


def web_like(tokens: int) -> Corpus:
    lengths = np.random.default_rng(0).lognormal(np.log(400), 1.2, tokens // 820).astype(np.int64) + 2
    return Corpus(np.full(lengths.sum(), 10, np.int32), lengths, WEB_LIKE_VOCAB, "no text")


def write(writer: ShardWriter | BinWriter, ids: np.ndarray, lengths: np.ndarray) -> None:
    """Feed batches of about the size that workers return, and finish."""
    ends = np.cumsum(lengths)
    parts = np.searchsorted(ends, np.arange(250_000, ends[-1], 250_000))
    starts = np.split(ids, ends[parts - 1]) if len(parts) else [ids]
    for some_ids, some_lengths in zip(starts, np.split(lengths, parts), strict=True):
        writer.add(some_ids, some_lengths)
    writer.finish()


def measure(name: str, corpus: Corpus, seq_len: int, folder: Path) -> Row:
    folder.mkdir(exist_ok=True)
    speeds = []
    for packed in (False, True):
        clear_output(folder)
        started = time.process_time()
        with ShardWriter(folder, vocab_size=corpus.vocab_size) as shards:
            bins = BinWriter(shards, seq_len=seq_len, pad_id=PAD)
            write(bins if packed else shards, corpus.ids, corpus.lengths)
        speeds.append(len(corpus.ids) / (time.process_time() - started))
    starts = np.cumsum(corpus.lengths) - corpus.lengths
    in_two_sequences = starts // seq_len != (starts + corpus.lengths - 1) // seq_len
    return Row(
        corpus=name,
        seq_len=seq_len,
        stream_cut=float(in_two_sequences.mean()),
        stream_needless=float((in_two_sequences & (corpus.lengths <= seq_len)).mean()),
        packed_cut=bins.documents_cut / len(corpus.lengths),
        filled=len(corpus.ids) / (len(corpus.ids) + bins.padding_tokens - 1),
        targets=bins.tokens / len(corpus.ids),
        stream_speed=speeds[0],
        packed_speed=speeds[1],
    )


def report(rows: list[Row], corpora: dict[str, Corpus], arguments: str) -> str:
    lines = [
        f"`python benchmarks/packing.py{arguments and ' '}{arguments}` · {date.today()} · {platform.machine()}, Python "
        f"{platform.python_version()}, NumPy {version('numpy')}",
        "",
        *(
            f"- {name}: {len(corpus.lengths):,} documents, {len(corpus.ids) / 1e6:.1f} million tokens, half of them up to "
            f"{np.median(corpus.lengths):,.0f}; {corpus.about}"
            for name, corpus in corpora.items()
        ),
        "",
        "| corpus | seq_len | cut, stream | needlessly | cut, packed | ratio | filled | targets / tokens | stream | packed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.corpus} | {row.seq_len:,} | {row.stream_cut:.1%} | {row.stream_needless:.1%} | {row.packed_cut:.1%} | "
            f"{row.packed_cut / row.stream_cut:.2f} | {row.filled:.2%} | {row.targets:.2%} | "
            f"{row.stream_speed / 1e6:,.0f} | {row.packed_speed / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[512, 2_048, 8_192])
    parser.add_argument("--vocab-size", type=int, default=8_000)
    parser.add_argument("--tokens", type=float, default=20e6, help="of the web-like corpus")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpora = {
            "standard library": standard_library(Path(scratch), options.vocab_size),
            "web-like": web_like(int(options.tokens)),
        }
        folder = Path(scratch) / "shards"
        measure("imports", web_like(1_000_000), 2_048, folder)
        rows = [
            measure(name, corpus, seq_len, folder) for name, corpus in corpora.items() for seq_len in options.seq_len
        ]
        print(report(rows, corpora, " ".join(sys.argv[1:])))


if __name__ == "__main__":
    main()
