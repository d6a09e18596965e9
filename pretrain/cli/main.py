"""The `pretrain` command. Each command imports heavy modules when it runs, so that --help stays fast."""

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
    """Pretrain a language model, from corpus to Hugging Face export."""


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
    """Run the complete pipeline on a small corpus, in a few minutes.

    Corpus, tokenizer, shards, training with two processes, kill -9, resume, export, fine-tuning with transformers.
    KEY=VALUE overrides configs/quickstart.yaml, e.g. engine.device=auto.
    """
    from pretrain.cli.quickstart.walk import run_quickstart

    run_quickstart(out, overrides)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train in this process. Resumes from the newest checkpoint of run.dir."""
    from launch.slurm.submit import refuse_beside_job
    from pretrain.training.process import main as train_main

    refuse_beside_job(Path(load_config(config, overrides).config.run.dir))
    train_main([str(config), *overrides])


@cli.group()
def config() -> None:
    """Inspect configurations."""


@config.command("show")
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
def config_show(config: Path, overrides: tuple[str, ...]) -> None:
    """Print every value and its origin."""
    click.echo(show_config(load_config(config, overrides)))


@cli.command()
def doctor() -> None:
    """Check this installation.

    Versions, devices, compiler, and conflicting packages.
    """
    from pretrain.cli.doctor import run_doctor

    sys.exit(run_doctor())


def main() -> None:
    """Run a command. A user error prints one message and exits with code 2, without a traceback."""
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
    except OSError as error:  # disk full, no permission, …
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(f"{error.filename}: {error.strerror}" if error.filename else str(error), err=True)
        wrong_place = PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
        sys.exit(UserError.exit_code if isinstance(error, wrong_place) else 1)
