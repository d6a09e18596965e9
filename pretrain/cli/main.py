"""The `pretrain` command. Nothing heavy is imported here: each command imports what it needs when it runs."""

import sys
from pathlib import Path

import click

from pretrain import __version__
from pretrain.cli.cmd_checkpoint import checkpoint
from pretrain.cli.cmd_convert import export_command, import_command
from pretrain.cli.cmd_data import data
from pretrain.cli.cmd_evaluate import evaluate
from pretrain.cli.cmd_generate import generate
from pretrain.cli.cmd_index import index
from pretrain.cli.cmd_inspect import inspect
from pretrain.cli.cmd_launch import launch, status, stop
from pretrain.cli.cmd_tokenizer import tokenizer
from pretrain.cli.cmd_tokenizer_train import inspect as inspect_tokenizer
from pretrain.cli.cmd_tokenizer_train import report
from pretrain.cli.cmd_tokenizer_train import train as train_tokenizer
from pretrain.config import load_config
from pretrain.config.show import show_config
from pretrain.errors import PretrainError, UserError

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="pretrain")
def cli() -> None:
    """From a corpus and a cluster to a language model that others fine-tune."""


for command in (train_tokenizer, report, inspect_tokenizer):
    tokenizer.add_command(command)
data.add_command(index)
for command in (
    *(tokenizer, data, launch, status, stop, checkpoint),
    *(evaluate, generate, inspect, export_command, import_command),
):
    cli.add_command(command)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True, metavar="DIR")
@OVERRIDES
def quickstart(out: Path, overrides: tuple[str, ...]) -> None:
    """Watch the whole path in a few minutes.

    Corpus, tokenizer, shards, training by two processes, kill -9, resume, export, and training on with transformers.
    KEY=VALUE changes configs/quickstart.yaml, e.g. engine.device=auto.
    """
    from pretrain.cli.quickstart.walk import run_quickstart

    run_quickstart(out, overrides)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train in this process; resumes by itself."""
    from pretrain.training.process import main as train_main

    train_main([str(config), *overrides])


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
    from pretrain.cli.doctor import run_doctor

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
    except OSError as error:  # a disk that is full, a folder that may not be written
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(f"{error.filename}: {error.strerror}" if error.filename else str(error), err=True)
        wrong_place = PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
        sys.exit(UserError.exit_code if isinstance(error, wrong_place) else 1)
