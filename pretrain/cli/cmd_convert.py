"""`pretrain export` and `pretrain import`: conversion to and from formats of other libraries."""

from pathlib import Path

import click

from pretrain.errors import UserError

# The first type of each format is its default.
DTYPES = {"hf": ("fp32", "bf16"), "gguf": ("f16", "q8_0", "bf16", "fp32")}


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", "format_", type=click.Choice([*DTYPES]), default="hf", show_default=True, help="Output format.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "f16", "q8_0"]),
    help="Type of the stored weights; hf: fp32 or bf16, gguf: any.  [default: fp32 for hf, f16 for gguf]",
)
@click.option("--step", type=int, help="Checkpoint to export.  [default: the newest]")
@click.option(
    "--average", type=click.IntRange(1), metavar="N", help="Export the mean weights of the newest N checkpoints."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer file, instead of the run's own.")
@click.option(
    "--max-shard-bytes",
    type=click.IntRange(1),
    default=2_000_000_000,
    show_default=True,
    help="Largest weight file; hf only.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export at OUT.")
def export_command(
    run: Path,
    output: Path,
    format_: str,
    dtype: str | None,
    step: int | None,
    average: int | None,
    tokenizer: Path | None,
    max_shard_bytes: int,
    overwrite: bool,
) -> None:
    """Export a checkpoint of RUN as a Hugging Face directory, or as a GGUF file for llama.cpp.

    Before a directory is published, its logits and token ids are compared with transformers'. A GGUF file is read back,
    and compared with llama.cpp if that is installed. RUN may also be a checkpoint folder or a Hugging Face directory.
    """
    dtype = dtype or DTYPES[format_][0]
    if dtype not in DTYPES[format_]:
        raise UserError(f"--dtype={dtype} is not a type of --to={format_}", hint=f"one of {', '.join(DTYPES[format_])}")
    from pretrain.convert.average import open_average
    from pretrain.convert.weight_sources import open_weights

    averaged = None if average is None else open_average(run, average, step)
    source = open_weights(run, step) if averaged is None else averaged
    if averaged is not None:
        click.echo(f"averaging the weights of steps {', '.join(map(str, averaged.averaged))}")
    if format_ == "gguf":
        from pretrain.convert.gguf.export_gguf import export_gguf

        click.echo(export_gguf(source, output, dtype=dtype, overwrite=overwrite, tokenizer=tokenizer).summary())
        return
    from pretrain.convert.export_hf import export_hf

    report = export_hf(
        source, output, dtype=dtype, max_shard_bytes=max_shard_bytes, overwrite=overwrite, tokenizer=tokenizer
    )
    click.echo(report.summary())


@click.command("import")
@click.argument("directory", metavar="HF_DIR", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer file, instead of the directory's own.")
def import_command(directory: Path, run: Path, tokenizer: Path | None) -> None:
    """Import a Hugging Face directory as a new run, to continue its training.

    Supports Llama, Qwen3, OLMo 2, GPT-2, StarCoder2 and StableLM. No code of the directory is run.
    """
    from pretrain.convert.import_hf import import_hf

    click.echo(import_hf(directory, run, tokenizer=tokenizer).summary())
