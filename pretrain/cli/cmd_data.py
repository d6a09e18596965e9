"""`pretrain data`: contents and integrity of shards, and the order in which a run reads them."""

import sys
from pathlib import Path

import click

from pretrain.report.numbers import format_megabytes
from pretrain.report.terminal import print_rows, transient_progress

ADDRESS = click.argument("address", metavar="DIR|ADDRESS")


@click.group()
def data() -> None:
    """Inspect and index token shards."""


@data.command()
@ADDRESS
@click.option(
    "--seq-len", type=click.IntRange(1), help="data.seq_len of a run, for what it leaves unread.  [default: 2048]"
)
def info(address: str, seq_len: int | None) -> None:
    """Print the manifest, and the share of targets that a run leaves unread."""
    from pretrain.cli.views.unread_targets import unread_rows
    from pretrain.shards.manifest_file import load_manifest
    from pretrain.storage.store import open_store

    manifest = load_manifest(open_store(address))
    begin = "" if manifest.bos_id == manifest.eos_id else f"begin with {manifest.bos_id} and "
    version = manifest.sentencepiece_version  # without a name, it is that of SentencePiece
    encoder = f", SentencePiece {version}" if version[:1].isdigit() else "" if version == "unknown" else f", {version}"
    rows = {
        "tokens": f"{manifest.tokens:,}",
        "documents": f"{manifest.documents:,}",
        "text": f"{format_megabytes(manifest.text_bytes)}, {manifest.text_bytes / manifest.tokens:.2f} bytes a token"
        if manifest.text_bytes
        else "of unknown size",
        "shards": f"{len(manifest.shards):,}, {format_megabytes(manifest.shards.bytes.sum())}",
        "blocks": f"{manifest.shards.blocks.sum():,} of {manifest.block_tokens:,} tokens",
        "ids": f"{manifest.dtype}, below {manifest.vocab_size:,}; documents {begin}end with {manifest.eos_id}",
        "tokenizer": f"sha256 {manifest.tokenizer_sha256[:16]}…{encoder}",
        **{f"left out: {reason}": f"{count:,}" for reason, count in manifest.skipped.items()},
        **unread_rows(manifest, seq_len),
    }
    print_rows(rows)


@data.command()
@ADDRESS
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Threads.")
def verify(address: str, workers: int) -> None:
    """Check every byte against manifest and index. If any is corrupt, list it and exit with code 1."""
    from pretrain.shards.integrity import verify_shards
    from pretrain.shards.manifest_file import load_manifest
    from pretrain.storage.store import open_store

    store = open_store(address)
    manifest = load_manifest(store)
    shards = len(manifest.shards)
    problems: list[str] = []
    with transient_progress() as progress:
        bar = progress.add_task("verify", total=shards)
        for _, found in verify_shards(store, manifest, workers=workers):
            problems += found
            progress.advance(bar)
    if problems:
        click.echo("\n".join(sorted(problems)))
        click.echo(f"{store.address}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in {shards} shards")
        sys.exit(1)
    click.echo(f"{store.address}: {shards} shard{'s' if shards != 1 else ''} intact")


@data.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--start", default=0, show_default=True, type=click.IntRange(0), help="First global sample number.")
@click.option("--count", default=10, show_default=True, type=click.IntRange(1), help="Number of samples.")
def order(config: Path, overrides: tuple[str, ...], start: int, count: int) -> None:
    """Print the sequences that a run reads, one a line: `g source shard block row crc32`.

    g is the global sample number, crc32 that of its tokens.
    """
    import zlib

    import numpy as np

    from pretrain.config import load_config
    from pretrain.data.prefetch import fetch_ahead
    from pretrain.training.startup.preflight import open_data

    run = open_data(load_config(config, overrides).config)
    samples = run.order()(np.arange(start, start + count))
    items = ({"source": samples.source[i : i + 1], "sequence": samples.sequence[i : i + 1]} for i in range(count))
    tokens = np.empty((1, run.train[0].seq_len + 1), dtype=np.int64)
    for g, item in enumerate(fetch_ahead(run.train)(items), start):
        source = run.train[item["source"][0]]
        source.read(item["sequence"], tokens)
        shard, block, row = source.place(int(item["sequence"][0]))
        click.echo(f"{g} {source.name} {shard} {block} {row} {zlib.crc32(tokens.astype('<i8').tobytes()):08x}")
