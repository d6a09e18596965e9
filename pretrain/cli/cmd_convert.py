"""`pretrain export` and `pretrain import`: out of a run into what other libraries load, and back in."""

from pathlib import Path

import click

from pretrain.errors import UserError

# Of each format, the first is the default.
DTYPES = {"hf": ("fp32", "bf16"), "gguf": ("f16", "q8_0", "bf16", "fp32")}


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", "format_", type=click.Choice([*DTYPES]), default="hf", show_default=True, help="What is written.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "f16", "q8_0"]),
    help="Type of the stored weights; hf: fp32 or bf16, gguf: any.  [default: fp32, for gguf f16]",
)
@click.option("--step", type=int, help="Checkpoint to export.  [default: the newest]")
@click.option(
    "--average", type=click.IntRange(1), metavar="N", help="The mean of the weights of the newest N checkpoints."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="For a run saved without one.")
@click.option("--max-shard-bytes", type=click.IntRange(1), default=2_000_000_000, show_default=True, help="hf only.")
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
    """Write a checkpoint of RUN as a Hugging Face directory, or as a file for llama.cpp.

    A directory is published only after its logits and token ids were compared with transformers'; a file for llama.cpp
    after it was read back, and compared with llama.cpp where that is installed. RUN may also be a checkpoint folder or a
    Hugging Face directory.
    """
    dtype = dtype or DTYPES[format_][0]
    if dtype not in DTYPES[format_]:
        raise UserError(f"--dtype={dtype} is not a type of --to={format_}", hint=f"one of {', '.join(DTYPES[format_])}")
    from pretrain.convert.average import open_average
    from pretrain.convert.weight_sources import open_weights

    averaged = None if average is None else open_average(run, average, step)
    source = open_weights(run, step) if averaged is None else averaged
    if averaged is not None:
        click.echo(f"mean of the weights of steps {', '.join(map(str, averaged.averaged))}")
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
@click.option("--tokenizer", type=click.Path(path_type=Path), help="For a directory without one that can be used.")
def import_command(directory: Path, run: Path, tokenizer: Path | None) -> None:
    """Make a new run of a Hugging Face directory, to go on with its training.

    Llama, Qwen3, OLMo 2, GPT-2, StarCoder2 and StableLM. Nothing of the directory is run.
    """
    from pretrain.convert.import_hf import import_hf

    click.echo(import_hf(directory, run, tokenizer=tokenizer).summary())
