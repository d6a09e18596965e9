"""How fast text becomes ids, in bytes a CPU second of one thread, and whether they are SentencePiece's ids.

One model of 32,000 pieces, trained on the text of this machine, half code and half prose. Each contender meets the same
documents one by one, begins each round without having seen any, and takes its turn in each round.

    SentencePiece            whole documents: the baseline, and the ids that count
    ours                     `tokenizer.models.fast.load_encoder`: gigatoken where it is installed and proved
    ours, word by word       what the same function gives without gigatoken
    tokenizers               the exported tokenizer.json (it splits nothing: SentencePiece merges across words as well)
    tiktoken                 the same pieces as ranks, and a pattern that splits where our cut does

`PYTHONPATH=. RAYON_NUM_THREADS=1 python benchmarks/encoders.py [--megabytes 16] [--rounds 5]`; needs `pip install tiktoken`.
"""

import argparse
import base64
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.real_texts import code_texts, prose_texts, translated_texts
from tests.support.tokenizers import train_sentencepiece
from tokenizer.models.fast import WordEncoder, load_encoder
from tokenizer.models.sentencepiece import load_sentencepiece_model, read_proto
from tokenizer.models.sentencepiece_to_hf import build_tokenizer

Encode = Callable[[str], Sequence[int] | np.ndarray]
CHUNK = 4_000  # characters of a training sentence


def sentencepiece_whole(path: Path) -> Encode:
    model = load_sentencepiece_model(path)
    return lambda text: model.encode(text)


def ours(path: Path) -> Encode:
    return load_encoder(path).encode


def ours_word_by_word(path: Path) -> Encode:
    return WordEncoder(load_sentencepiece_model(path))


def huggingface(path: Path) -> Encode:
    tokenizer = build_tokenizer(read_proto(path))
    tokenizer.encode_special_tokens = True  # spelt symbols stay text, as in SentencePiece
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def tiktoken_of_the_same_pieces(path: Path) -> Encode:
    """Bytes, then the beginnings of characters (which SentencePiece has no need of), characters, pieces by score."""
    import tiktoken

    proto = read_proto(path)
    normal = [(piece.score, token, piece.piece.replace("▁", " ")) for token, piece in enumerate(proto.pieces)]
    normal = [entry for entry in normal if proto.pieces[entry[1]].type == 1]
    id_of = {bytes([int(piece.piece[3:5], 16)]): i for i, piece in enumerate(proto.pieces) if piece.type == 6}
    id_of |= {text.encode(): token for _, token, text in normal}
    characters = [text.encode() for _, _, text in normal if len(text) == 1]
    longer = [text.encode() for _, _, text in sorted(normal, key=lambda entry: -entry[0]) if len(text) > 1]
    starts = [character[:end] for character in characters for end in range(2, len(character))]
    order = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *starts, *characters, *longer])
    ranks = {content: rank for rank, content in enumerate(order)}
    ids = np.array([id_of.get(content, -1) for content in order], np.int32)
    encoding = tiktoken.Encoding("same", pat_str=r" *[^ ]+| +", mergeable_ranks=ranks, special_tokens={})
    return lambda text: ids[encoding.encode_ordinary(text)]


CONTENDERS: dict[str, Callable[[Path], Encode]] = {
    "SentencePiece": sentencepiece_whole,
    "ours": ours,
    "ours, word by word": ours_word_by_word,
    "tokenizers": huggingface,
    "tiktoken": tiktoken_of_the_same_pieces,
}


def measure(path: Path, texts: list[str], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Bytes a CPU second by contender and round, and the share of documents with SentencePiece's ids."""
    size = sum(len(text.encode()) for text in texts)
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    equal: dict[str, float] = {}
    expected = [np.array(ids) for ids in map(sentencepiece_whole(path), texts)]
    for number in range(rounds + 1):  # the first shows the ids and warms the machine
        for name, make in CONTENDERS.items():
            encode = make(path)
            if number == 0:
                equal[name] = sum(map(np.array_equal, expected, map(encode, texts))) / len(texts)
                continue
            started = time.process_time()
            for text in texts:
                encode(text)
            speeds[name].append(size / (time.process_time() - started))
    return speeds, equal


def memory(path: Path, kind: str) -> str:
    """Time and memory of encoding some 64 MB in a process of its own: a row of a table."""
    generator = random.Random(0)
    makers: dict[str, Callable[[], list[str]]] = {
        "code": lambda: code_texts(64_000_000),
        "prose": lambda: prose_texts(64_000_000),
        "base64, a megabyte a document": lambda: [
            base64.encodebytes(generator.randbytes(750_000)).decode() for _ in range(60)
        ],
        "words of six random digits": lambda: [generator.randbytes(300_000).hex(" ", 3) for _ in range(60)],
    }
    texts = makers[kind]()
    encode = load_encoder(path).encode
    encode("warm")
    before = _kilobytes("VmRSS")
    for text in texts:
        encode(text)
    size = sum(len(text.encode()) for text in texts)
    return f"| {kind} | {size / 1e6:.0f} | {(_kilobytes('VmHWM') - before) / 1e3:.0f} |"


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def report(results: dict[str, tuple[str, Any, Any]], arguments: str) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("sentencepiece", "gigatoken", "tokenizers", "tiktoken"))
    lines = [
        f"`python benchmarks/encoders.py{arguments}` · {date.today()} · {platform.machine()}, Python "
        f"{platform.python_version()}, {packages}",
    ]
    for kind, (about, speeds, equal) in results.items():
        lines += [
            f"\n{kind}: {about}\n",
            "| | MB a CPU second (median) | against SentencePiece (median of rounds) | min | max | same ids |",
            "|---|---|---|---|---|---|",
        ]
        for name, values in speeds.items():
            ratios = [value / base for value, base in zip(values, speeds["SentencePiece"], strict=True)]
            lines.append(
                f"| {name} | {statistics.median(values) / 1e6:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | "
                f"{max(ratios):.2f} | {equal[name]:.2%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=16, help="of code, and of prose")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    options = parser.parse_args()
    size = int(options.megabytes * 1e6)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.model"
        sample = [*code_texts(5_000_000), *prose_texts(4_000_000), *translated_texts(1_000_000)]
        chunks = [text[start : start + CHUNK] for text in sample for start in range(0, len(text), CHUNK)]
        train_sentencepiece(path, options.vocab_size, chunks, character_coverage=0.9995, num_threads=2)
        print(load_encoder(path).name, load_encoder(path).note)
        results = {}
        for kind, texts in (("Code", code_texts(size)), ("Prose", prose_texts(size))):
            foreign = sum(len(text.encode()) - len(text) for text in texts) / sum(map(len, texts))
            total = sum(len(text.encode()) for text in texts)
            about = f"{len(texts):,} documents, {total / 1e6:.1f} MB, {foreign:.1%} more bytes than characters"
            results[kind] = (about, *measure(path, texts, options.rounds))
        print(report(results, f" --megabytes {options.megabytes:g} --rounds {options.rounds}"))
        print("\n| text | MB | memory grew by, MB |\n|---|---|---|", flush=True)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            for kind in ("code", "prose", "base64, a megabyte a document", "words of six random digits"):
                print(pool.submit(memory, path, kind).result(), flush=True)


if __name__ == "__main__":
    main()
