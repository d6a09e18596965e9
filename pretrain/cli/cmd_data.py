"""`pretrain data`: what shards hold, whether they are whole, and which sequence is read when."""

import sys
from pathlib import Path

import click

ADDRESS = click.argument("address", metavar="DIR|ADDRESS")


@click.group()
def data() -> None:
    """Look into token shards."""


@data.command()
@ADDRESS
def info(address: str) -> None:
    """Print what a manifest says."""
    from pretrain.shards.manifest_file import load_manifest
    from pretrain.storage.store import open_store

    manifest = load_manifest(open_store(address))
    begin = "" if manifest.bos_id == manifest.eos_id else f"begin with {manifest.bos_id} and "
    version = manifest.sentencepiece_version
    rows = {
        "tokens": f"{manifest.tokens:,}",
        "documents": f"{manifest.documents:,}",
        "text": f"{manifest.text_bytes / 1e6:,.1f} MB, {manifest.text_bytes / manifest.tokens:.2f} bytes a token"
        if manifest.text_bytes
        else "of unknown size",
        "shards": f"{len(manifest.shards):,}, {manifest.shards.bytes.sum() / 1e6:,.1f} MB",
        "blocks": f"{manifest.shards.blocks.sum():,} of {manifest.block_tokens:,} tokens",
        "ids": f"{manifest.dtype}, below {manifest.vocab_size:,}; documents {begin}end with {manifest.eos_id}",
        "tokenizer": f"sha256 {manifest.tokenizer_sha256[:16]}…, {version if ' ' in version else f'SentencePiece {version}'}",
        **{f"left out: {reason}": f"{count:,}" for reason, count in manifest.skipped.items()},
    }
    width = max(map(len, rows))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


@data.command()
@ADDRESS
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Threads.")
def verify(address: str, workers: int) -> None:
    """Read every byte and hold it against manifest and index. Exit code 1 with a list of the damage."""
    from rich.console import Console
    from rich.progress import Progress

    from pretrain.shards.integrity import verify_shards
    from pretrain.shards.manifest_file import load_manifest
    from pretrain.storage.store import open_store

    store = open_store(address)
    manifest = load_manifest(store)
    shards = len(manifest.shards)
    problems: list[str] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("verify", total=shards)
        for _, found in verify_shards(store, manifest, workers=workers):
            problems += found
            progress.advance(task)
    if problems:
        click.echo("\n".join(sorted(problems)))
        click.echo(f"{store.address}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in {shards} shards")
        sys.exit(1)
    click.echo(f"{store.address}: {shards} shard{'s' if shards != 1 else ''} whole")


@data.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--start", default=0, show_default=True, type=click.IntRange(0), help="First global sample id.")
@click.option("--count", default=10, show_default=True, type=click.IntRange(1), help="Samples.")
def order(config: Path, overrides: tuple[str, ...], start: int, count: int) -> None:
    """Print which sequences a run reads: `g source shard block row crc32` (of its tokens), a line each."""
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
