"""How much faster several processes encode than one, and what else the tasks cost: the whole command, by its clock.

A corpus of jsonl is made of this machine's Python standard library, again and again, and encoded by `pretrain tokenizer encode`
with 1, 2, … processes in turn, some rounds over, so that a busy moment meets all of them. The ratio of the best rounds is what
counts; the bytes written are compared too.

`python benchmarks/encode_workers.py [--workers 1 2] [--megabytes 400] [--task-megabytes 16] [--rounds 3] [--pieces 8000]`
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from pretrain.cli.quickstart.stdlib_corpus import write_corpus
from tokenizer.models.fast import load_encoder
from tokenizer.training.budget import SampleSource
from tokenizer.training.train_bpe import train_tokenizer


def make_corpus(folder: Path, megabytes: float) -> Path:
    """A jsonl of about so many megabytes."""
    write_corpus(folder / "once")
    once = (folder / "once" / "train.jsonl").read_bytes()
    path = folder / "corpus.jsonl"
    with path.open("wb") as file:
        for _ in range(max(1, round(megabytes * 1e6 / len(once)))):
            file.write(once)
    return path


def encode(model: Path, corpus: Path, out: Path, workers: int, task_megabytes: float) -> tuple[float, str]:
    """Seconds of the whole command, and a digest of what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    paths = ["--tokenizer", str(model), "--input", str(corpus), "--output", str(out)]
    options = ["--workers", str(workers), "--task-megabytes", str(task_megabytes)]
    started = time.monotonic()
    command = [sys.executable, "-m", "pretrain.cli", "tokenizer", "encode", *paths, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    digest = hashlib.sha256()
    for path in sorted(out.iterdir()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return seconds, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--task-megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pieces", type=int, default=8_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        corpus = make_corpus(scratch, arguments.megabytes)
        source = SampleSource("standard-library", (str(scratch / "once" / "train.jsonl"),))
        model = train_tokenizer([source], arguments.pieces, scratch / "tokenizer", sample_bytes=5_000_000).path
        best: dict[int, float] = {}
        digests = set()
        for _ in range(arguments.rounds):
            for workers in arguments.workers:
                seconds, digest = encode(model, corpus, scratch / "out", workers, arguments.task_megabytes)
                best[workers] = min(best.get(workers, seconds), seconds)
                digests.add(digest)
        size = corpus.stat().st_size
        print(
            f"`python benchmarks/encode_workers.py{''.join(f' {a}' for a in sys.argv[1:])}` · {date.today()} · "
            f"{platform.machine()}, Python {platform.python_version()}, {load_encoder(model).name}, sentencepiece "
            f"{version('sentencepiece')}\n"
        )
        print(f"{size / 1e6:.0f} MB of jsonl, {len(digests)} different results.\n")
        print("| processes | seconds | MB/s | against one |\n|---|---|---|---|")
        for workers, seconds in best.items():
            ratio = best[arguments.workers[0]] / seconds
            print(f"| {workers} | {seconds:.1f} | {size / 1e6 / seconds:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
