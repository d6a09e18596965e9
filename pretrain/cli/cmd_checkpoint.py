"""`pretrain checkpoint`: list, verify and delete the checkpoints of a run, without importing torch."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from pretrain.checkpoint import layout
from pretrain.checkpoint.retention import reasons_to_keep, validation_loss
from pretrain.config.load import load_saved
from pretrain.errors import CheckpointError, UserError
from pretrain.report.numbers import format_age, format_megabytes
from pretrain.report.terminal import transient_progress
from pretrain.run_folder import RunFolder

RUN = click.argument("run", type=click.Path(path_type=Path))


class Save(NamedTuple):
    """A checkpoint or weights-only save. `state` is empty if it is corrupt; `kept` lists the retention rules that keep it."""

    step: int
    weights_only: bool
    folder: Path
    saved_at: float
    bytes: int
    state: dict[str, Any]
    damage: str | None
    kept: list[str]


@click.group()
def checkpoint() -> None:
    """List, verify and delete the checkpoints of a run."""


@checkpoint.command("ls")
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array; times are Unix timestamps.")
def list_(run: Path, as_json: bool) -> None:
    """List the checkpoints of RUN, and why each is kept: keep_last, keep_every_steps or keep_best.

    Checks file sizes only; `verify` checks hashes.
    """
    saves = list_saves(_open(run))
    click.echo(json.dumps([_json(save) for save in saves], indent=1) if as_json else _table(saves, time.time()))


@checkpoint.command()
@RUN
@click.option("--step", type=int, help="Verify only this step.  [default: all]")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Threads.")
def verify(run: Path, step: int | None, workers: int) -> None:
    """Check every file against its hash. Lists corrupt files and exits with code 1 if there are any."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    folder = _open(run)
    places = (folder.checkpoints, folder.weights)
    layout.find_step(step, *places)
    saves = [save for place in places for save in _folders(place) if step in (None, layout.parse_name(save.name))]
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with transient_progress(*columns) as progress:
        bar = progress.add_task("verify", total=None)
        damage = find_damage(saves, workers, lambda done, total: progress.update(bar, completed=done, total=total))
    count = f"{len(saves)} checkpoint{'s' if len(saves) != 1 else ''}"
    if damage:
        click.echo("\n".join(damage))
        click.echo(f"{run}: {len(damage)} problem{'s' if len(damage) > 1 else ''} in {count}")
        sys.exit(1)
    click.echo(f"{run}: {count} intact")


@checkpoint.command()
@RUN
@click.argument("steps", type=int, nargs=-1, required=True, metavar="STEP...")
@click.option("--weights", is_flag=True, help="Delete weights-only saves, in RUN/weights.")
@click.option("--force", is_flag=True, help="Delete even if no checkpoint to resume from is left.")
def rm(run: Path, steps: tuple[int, ...], weights: bool, force: bool) -> None:
    """Delete checkpoints of a run that is not training. Copies in an object store are kept."""
    folder = _open(run)
    place = folder.weights if weights else folder.checkpoints
    with folder.claim():  # no training may start, or delete these first, until all are deleted
        doomed = [layout.find_step(step, place) for step in dict.fromkeys(steps)]
        if not weights and not force:
            _check_one_stays(place, doomed)
        for path in doomed:
            try:
                layout.remove(path)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be deleted: {error.strerror}") from error
            click.echo(f"deleted {path}")


def list_saves(run: RunFolder) -> list[Save]:
    """All checkpoints and weights-only saves, by step."""
    found = [save for place in (run.checkpoints, run.weights) for save in map(_inspect, _folders(place)) if save]
    good = {save.step: save for save in found if not (save.damage or save.weights_only)}
    with suppress(UserError):  # a copied run may lack its configuration: then no reasons are shown
        rules = load_saved(run.config).checkpoint
        losses = {step: loss for step, save in good.items() if (loss := validation_loss(save.state)) is not None}
        reasons = reasons_to_keep(good, losses, rules, saved_step=max(good, default=0))
        found = [save._replace(kept=reasons[save.step]) if save is good.get(save.step) else save for save in found]
    return sorted(found, key=lambda save: (save.step, save.weights_only))


def find_damage(saves: list[Path], workers: int, progress: Callable[[int, int], None]) -> list[str]:
    """Problems of the files of these checkpoints, a line each; `progress` gets bytes done and bytes in total."""
    files: list[tuple[Path, layout.FileEntry]] = []
    problems: list[tuple[Path, str]] = []
    for folder in saves:
        try:
            files += [(folder, entry) for entry in layout.read_manifest(folder)]
        except CheckpointError as error:
            problems.append((folder, error.message))
    done, total = 0, sum(entry.bytes for _, entry in files)
    with ThreadPoolExecutor(workers) as pool:
        for (folder, entry), problem in zip(files, pool.map(_problem, files), strict=True):
            done += entry.bytes
            progress(done, total)
            problems += [(folder, problem)] if problem is not None else []
    # A running training may have deleted a checkpoint meanwhile.
    return [problem for folder, problem in problems if folder.exists()]


def _problem(file: tuple[Path, layout.FileEntry]) -> str | None:
    try:
        layout.check_file(*file)
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def _check_one_stays(place: Path, doomed: list[Path]) -> None:
    """Raise CheckpointError if the deletion leaves no intact checkpoint, though there is one."""
    stay = [folder for folder in _folders(place) if folder not in doomed]
    # Newest first, and lazily: hashing ends at the first intact one.
    if not any(map(_is_intact, reversed(stay))) and any(map(_is_intact, doomed)):
        raise CheckpointError(
            f"{place}: this deletion leaves no checkpoint to resume from",
            hint="delete them anyway: --force",
        )


def _is_intact(folder: Path) -> bool:
    try:
        layout.verify(folder)
    except CheckpointError:
        return False
    return True


def _open(run: Path) -> RunFolder:
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist", hint="RUN is the run.dir of a training run")
    return RunFolder(run)


def _folders(place: Path) -> Iterator[Path]:
    return (place / layout.checkpoint_name(step) for step in layout.list_steps(place))


def _inspect(folder: Path) -> Save | None:
    """A save as its files show it; None if a running training has just deleted it."""
    state, damage = {}, None
    try:
        state = layout.verify(folder, hashes=False)
    except CheckpointError as error:
        damage = error.message
    try:
        size = sum(path.stat().st_size for path in folder.iterdir())
        saved_at = folder.stat().st_mtime  # of the folder: the manifest is created last
    except FileNotFoundError:
        return None
    return Save(
        layout.parse_name(folder.name) or 0, folder.parent.name == "weights", folder, saved_at, size, state, damage, []
    )


def _json(save: Save) -> dict[str, Any]:
    state = {key: save.state.get(key) for key in ("tokens", "samples", "world_size", "zero_stage", "validation_loss")}
    return {**save._asdict(), "folder": str(save.folder), "state": state}


def _table(saves: list[Save], now: float) -> str:
    if not saves:
        return "no checkpoints yet"
    rows: list[tuple[str, ...]] = [("step", "age", "size", "tokens", "ranks", "stage", "valid loss", "kept")]
    rows += [_row(save, now) for save in saves]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row[:-1], widths, strict=False)) for row in rows]
    notes = [f"corrupt: {save.damage}" for save in saves if save.damage]
    return "\n".join([*(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True)), *notes])


def _row(save: Save, now: float) -> tuple[str, ...]:
    state, loss = save.state, validation_loss(save.state)
    why = "weights only" if save.weights_only else ", ".join(save.kept)
    return (
        str(save.step),
        format_age(now - save.saved_at),
        format_megabytes(save.bytes),
        f"{state['tokens']:,}" if "tokens" in state else "–",
        *(str(state.get(key, "–")) for key in ("world_size", "zero_stage")),
        "–" if loss is None else f"{loss:.4f}",
        "corrupt" if save.damage else why or "–",
    )
