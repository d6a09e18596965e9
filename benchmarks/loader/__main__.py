"""Our data stream against other loaders: tokens per CPU second, and the time to resume at 90 % of an epoch.

All read the same tokens from a warm page cache and deliver the same batches: inputs and targets, int64 torch tensors of
16 x 2,048. CPU time counts all threads, and worker processes where there are any. torch runs one thread.

    python -m benchmarks.loader [--tokens N] [--data FOLDER] [--rounds N] [--only WORD …]   the table of loaders
    python -m benchmarks.loader --scale [--data FOLDER]         a corpus of 78,000 shards: opening, first batch, reading
    python -m benchmarks.loader --plan                          planning for 40 sources, 10^13 tokens and 4,096 ranks

Rivals that are not installed are skipped. For all of them, in an environment of their own:

    pip install torch numpy webdataset omegaconf pyyaml fsspec click rich safetensors datasets megatron-energon
    pip install --no-deps --editable . && pip install --no-deps mosaicml-streaming
    pip install transformers torchvision boto3 catalogue python-snappy Brotli zstd

Streaming's own requirements hold NumPy and transformers back, hence --no-deps and what it imports.
"""

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import warnings
from datetime import date
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.loader import corpora, packages, scale, simple
from benchmarks.loader.measure import Contender, measure

BATCH, SEQ_LEN = 16, 2048
SMALLEST = 30_000_000  # tokens: buffers of 1,000 rows must fit into the last tenth
BASELINE = "nanoGPT, map kept"


def contenders(root: Path, tokens: int) -> tuple[list[Contender], list[str]]:
    """Everything that can be measured here, and a line for each that cannot."""
    epoch = (tokens - 1) // SEQ_LEN // BATCH
    folder = corpora.plain(root, tokens)
    ids, ends = corpora.read_plain(folder)
    shards = corpora.token_shards(root, ids)
    documents = corpora.document_tars(root, ids, ends)
    sizes = (BATCH, SEQ_LEN)

    def ours(at: int, _: object, prefetch: int = 0) -> simple.Batches:
        return simple.ours_pairs(shards, *sizes, start=at, prefetch=prefetch)

    found = [
        Contender("ours, first epoch (each block checked)", ours, whole=epoch),
        Contender("ours, later epochs", ours),
        Contender("ours, later epochs, prefetch thread", partial(ours, prefetch=4)),
        Contender("ours, later epochs, copied apart", lambda at, _: simple.ours_contiguous(shards, *sizes, start=at)),
        Contender(BASELINE, lambda at, _: simple.nanogpt(folder, *sizes, map_again=False)),
        Contender(
            "nanoGPT as it is, mapped for each batch", lambda at, _: simple.nanogpt(folder, *sizes, map_again=True)
        ),
        Contender(
            "Megatron-style sample map",
            lambda at, _: simple.sample_map(folder, root / "sample-map", *sizes, start=at),
            epoch=epoch - 1,
        ),
        Contender(
            "WebDataset over our tars, rows shuffled",
            lambda at, _: simple.webdataset_blocks(shards, *sizes, start=at),
            epoch=epoch - 1,
        ),
        Contender(
            "WebDataset, a sample a document",
            lambda at, _: simple.webdataset_documents(documents, *sizes, start=at),
            epoch=epoch - 1,
        ),
        Contender(
            "WebDataset, a sample a document, 2 workers",
            lambda at, _: simple.webdataset_documents(documents, *sizes, start=at, workers=2),
            whole=epoch // 4,
        ),
    ]
    missing = []
    for module, make in {"datasets": _datasets, "streaming": _streaming, "megatron.energon": _energon}.items():
        try:
            import_module(module)
        except ImportError as error:
            missing.append(f"{module}: not measured ({error})")
            continue
        found += make(root, ids, epoch)
    return found, missing


def _datasets(root: Path, ids: corpora.Ids, epoch: int) -> list[Contender]:
    table = corpora.arrow(root, ids, SEQ_LEN + 1)
    return [
        Contender(
            "HF datasets, map-style, shuffled", lambda at, _: packages.arrow_map(table, BATCH, start=at), epoch=epoch
        ),
        Contender(
            "HF datasets, map-style, 2 workers",
            lambda at, _: packages.arrow_map(table, BATCH, start=at, workers=2),
            whole=epoch // 4,
        ),
        Contender(
            "HF datasets, streaming",
            lambda _, state: packages.arrow_streaming(table, BATCH, state=state),
            state=partial(packages.arrow_state, table, BATCH),
            epoch=epoch,
        ),
    ]


def _streaming(root: Path, ids: corpora.Ids, epoch: int) -> list[Contender]:
    folder = corpora.mosaic(root, ids, SEQ_LEN + 1)
    return [Contender("Mosaic Streaming", lambda at, _: packages.mosaic(folder, BATCH, start=at), epoch=epoch)]


def _energon(root: Path, ids: corpora.Ids, epoch: int) -> list[Contender]:
    folder = corpora.row_tars(root, ids, SEQ_LEN + 1)
    return [
        Contender(
            "Megatron-Energon",
            lambda _, state: packages.energon(folder, BATCH, state=state),
            state=partial(packages.energon_state, folder, BATCH),
        )
    ]


def report(contenders: list[Contender]) -> str:
    """A Markdown table; ratios are medians over the rounds, against the baseline in the same round."""
    baseline = next(contender.speeds for contender in contenders if contender.name == BASELINE)
    lines = [
        "| | M tokens / CPU s (median) | against the baseline | min | max | resume at 90 %, s |",
        "|---|---|---|---|---|---|",
    ]
    for contender in contenders:
        ratios = [speed / base for speed, base in zip(contender.speeds, baseline, strict=True)]
        resume = "" if contender.resume_s is None else f"{contender.resume_s:.3f}"
        lines.append(
            f"| {contender.name} | {statistics.median(contender.speeds):,.1f} | {statistics.median(ratios):.3f} | "
            f"{min(ratios):.3f} | {max(ratios):.3f} | {resume} |"
        )
    return "\n".join(lines)


def heading() -> str:
    packages_found = []
    for name in ("torch", "numpy", "webdataset", "datasets", "mosaicml-streaming", "megatron-energon"):
        try:
            packages_found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"`python -m benchmarks.loader {' '.join(sys.argv[1:])}` · {date.today()} · {os.cpu_count()} CPU cores, "
        f"{platform.machine()} · Python {platform.python_version()}, {', '.join(packages_found)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150_000_000)
    parser.add_argument("--data", type=Path, help="keep the corpora in this folder, for the next run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="loaders whose name holds one of these words, and the baseline")
    parser.add_argument("--no-resume", action="store_true")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--plan", action="store_true")
    options = parser.parse_args()
    if options.tokens < SMALLEST:
        parser.error(f"--tokens {options.tokens}: at least {SMALLEST}, or an epoch is over too soon")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logging.disable(logging.WARNING)
    print(heading(), end="\n\n")
    if options.plan:
        print(scale.plan())
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.data or Path(scratch)) / str(options.tokens)
        if options.scale:
            ids, _ = corpora.read_plain(corpora.plain(root, options.tokens))
            print(scale.read_large_corpus(corpora.token_shards(root, ids), root / "large"))
            return
        found, missing = contenders(root, options.tokens)
        if options.only:
            found = [c for c in found if c.name == BASELINE or any(word in c.name for word in options.only)]
        for contender in found:
            contender.check((BATCH, SEQ_LEN))
        measure(found, rounds=options.rounds, tokens_per_batch=BATCH * SEQ_LEN)
        if not options.no_resume:
            batch = (options.tokens - 1) // SEQ_LEN // BATCH * 9 // 10
            for contender in found:
                contender.measure_resume(batch)
        print("\n".join([report(found), "", *missing]))


if __name__ == "__main__":
    main()
