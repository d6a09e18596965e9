"""The `pretrain` command. Nothing heavy is imported here: each command imports what it needs when it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from launch.cli import launch, status, stop
from pretrain import __version__
from pretrain.checkpoint.cli import checkpoint
from pretrain.config import load_config
from pretrain.config.show import show_config
from pretrain.data.cli import data
from pretrain.errors import PretrainError, UserError
from tokenizer.cli import tokenizer
from tokenizer.foreign_cli import index
from tokenizer.inspect_model import Checks
from tokenizer.train_cli import inspect, report
from tokenizer.train_cli import train as train_tokenizer

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
RUN = click.argument("run", type=click.Path(path_type=Path))


def nasty_texts(control_symbols: Sequence[str]) -> list[str]:
    """`pretrain.convert.nasty_text.nasty_texts`, imported when it is called."""
    from pretrain.convert.nasty_text import nasty_texts as texts

    return texts(control_symbols)


def export_reasons(model: Path) -> list[str]:
    """All that keeps a SentencePiece model from an export to Hugging Face with the same ids."""
    from pretrain.convert.tokenizer_json import read_model, reasons_against

    return reasons_against(read_model(model))


# What the tokenizer's commands may not import themselves (`click.pass_obj`).
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "obj": Checks(nasty_texts, export_reasons)}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="pretrain")
def cli() -> None:
    """From a corpus and a cluster to a language model that others fine-tune."""


for command in (train_tokenizer, report, inspect):
    tokenizer.add_command(command)
cli.add_command(tokenizer)
cli.add_command(data)
cli.add_command(checkpoint)
cli.add_command(launch)
cli.add_command(stop)
cli.add_command(status)
data.add_command(index)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True, metavar="DIR")
@OVERRIDES
def quickstart(out: Path, overrides: tuple[str, ...]) -> None:
    """Watch the whole path in a few minutes.

    Corpus, tokenizer, shards, training by two processes, kill -9, resume, export, and training on with transformers.
    KEY=VALUE changes configs/quickstart.yaml, e.g. engine.device=auto.
    """
    from pretrain.quickstart import run_quickstart

    run_quickstart(out, overrides)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train in this process; resumes by itself."""
    from pretrain.train import main as train_main

    train_main([str(config), *overrides])


@cli.command()
@RUN
@click.argument("output", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--step", type=int, help="Checkpoint to export.  [default: the newest]")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--tokenizer", "tokenizer_model", type=click.Path(path_type=Path), help="For a run saved without one.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in DIR.")
def export(
    run: Path, output: Path, step: int | None, dtype: str, tokenizer_model: Path | None, overwrite: bool
) -> None:
    """Write a checkpoint as a Hugging Face directory.

    It is published only after its logits and its token ids were compared with transformers and SentencePiece.
    """
    from pretrain.checkpoint.read import open_checkpoint
    from pretrain.convert.hf import export_hf

    report = export_hf(open_checkpoint(run, step), output, dtype=dtype, overwrite=overwrite, tokenizer=tokenizer_model)
    click.echo(report.summary())


@cli.command()
@RUN
@click.argument("text")
@click.option("--step", type=int, help="Checkpoint to use.  [default: the newest]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--greedy", is_flag=True, help="The same as --temperature 0.")
@click.option("--seed", type=int, default=0, show_default=True)
def generate(
    run: Path,
    text: str,
    step: int | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    greedy: bool,
    seed: int,
) -> None:
    """Continue TEXT with a checkpoint of RUN."""
    from pretrain.checkpoint.read import open_checkpoint
    from pretrain.generate import Sampling, generate_text
    from tokenizer.model import load_tokenizer

    reader = open_checkpoint(run, step)
    if reader.tokenizer is None:
        raise UserError(
            f"{reader.folder} was saved without a tokenizer", hint="train with data.tokenizer=DIR/tokenizer.model"
        )
    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p)
    for part in generate_text(reader.model(), load_tokenizer(reader.tokenizer), text, max_new_tokens, sampling, seed):
        click.echo(part, nl=False)
    click.echo()


@cli.group()
def config() -> None:
    """Look at configurations."""


@config.command("show")
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
def config_show(config: Path, overrides: tuple[str, ...]) -> None:
    """Print every resolved value with where it came from."""
    click.echo(show_config(load_config(config, overrides)))


@cli.command()
def doctor() -> None:
    """Check this installation.

    Versions, devices, a compiler, and packages that would be in the way.
    """
    from pretrain.doctor import run_doctor

    sys.exit(run_doctor())


def main() -> None:
    """Run a command; a mistake of the user ends with one message and exit code 2, never with a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PretrainError as error:
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
