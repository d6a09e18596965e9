"""A run that is killed again and again until it is done, held against one that nothing happened to.

1. start     all ranks, with a death at a named point (chaos/chaos_kills.py) or at a random moment
2. kill      one rank died: the others at once, or after they had time to notice it by themselves
3. look      every checkpoint is whole; sometimes damage the newest one, where an older one is left
4. again     until the run is done; then compare everything that it left                  differences()
"""

import json
import random
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun
from pretrain.run_folder import RunFolder
from pretrain.training.metrics import read_lines
from tests.support.checkpoints import flip_a_bit
from tests.support.prefork import Prefork
from tests.support.processes import kill_all, start_ranks

LIFE_S = 240.0  # a life that lasts longer hangs
ALONE_S = 4.0  # what the others have to notice that a rank died; a launcher would end them then
TIMED = ("seconds", "tokens_per_second", "model_flops_per_second", "slowest")

# Point: how often it may be reached before the death there, at most.
ON_ANY_RANK = {
    "load": 40,
    "loaded": 1,
    "snapshot": 4,
    "between_files": 8,
    "writing": 60,
    "forward": 60,
    "update": 12,
    "evaluate": 6,
}
ON_RANK_0 = {
    "claim": 1,
    "staging": 10,
    "commit": 4,
    "manifest": 4,
    "renamed": 4,
    "committed": 4,
    "pruning": 3,
    "cut_line": 20,
    "jump": 1,
    "rollback": 2,  # the first is that of the start
    "finish": 1,
    "replacing,name=attempt": 1,
    "replacing,name=status": 2,
    "replacing,name=metrics.jsonl": 1,
    "replacing,name=jumps.json": 1,
}
WHILE_UPLOADING = {"uploading": 2, "file_uploaded": 12, "uploaded": 2, "deleted_there": 6}  # on rank 0
RANDOM_POINTS = ("random, from the start", "random, while it trains")


@dataclass(frozen=True)
class Death:
    """Where and when a life ends. `after_s` is for random moments, `count` for points."""

    point: str
    rank: int = 0
    count: int = 1
    after_s: float = 0.0
    alone: bool = False  # the other ranks are left to notice it

    @property
    def chaos(self) -> str:
        """The fault that brings it about; none for a random moment, which is the driver's."""
        if self.point in RANDOM_POINTS:
            return ""
        name, _, more = self.point.partition(",")
        return f"kill_at_{name}:rank={self.rank},count={self.count}{',' + more if more else ''}"


@dataclass
class Life:
    """One start. `resumed` is the step that it began from; `noticed` whether ranks left alone ended by themselves."""

    death: Death
    resumed: int
    killed: bool
    damaged: bool = False
    noticed: bool | None = None


@dataclass
class Story:
    """All lives of a run, and in what its end differs from the undisturbed run's: nothing, it should be."""

    stage: int
    ranks: int
    lives: list[Life] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    uploads: bool = False

    @property
    def kills(self) -> int:
        return sum(life.killed for life in self.lives)


def deaths(draw: random.Random, ranks: int, points: Sequence[str] = (), *, uploads: bool = False) -> Iterator[Death]:
    """Endlessly: first these points, then a third random moments, the rest points of all kinds, or those of uploads."""
    for point in points:
        yield _death(draw, ranks, point)
    while True:
        named = list(WHILE_UPLOADING) if uploads else [*ON_ANY_RANK, *ON_RANK_0]
        yield _death(draw, ranks, draw.choice(RANDOM_POINTS if draw.random() < 0.34 else named))


def _death(draw: random.Random, ranks: int, point: str) -> Death:
    alone = ranks > 1 and draw.random() < 0.5
    rank = draw.randrange(ranks) if point in ON_ANY_RANK or point in RANDOM_POINTS else 0
    longest = {RANDOM_POINTS[0]: 5.0, RANDOM_POINTS[1]: 1.5}.get(point, 0.0)
    count = draw.randint(1, {**ON_ANY_RANK, **ON_RANK_0, **WHILE_UPLOADING}.get(point, 1))
    return Death(point, rank, count, draw.uniform(0, longest), alone)


def undisturbed(
    config: Path, ranks: int, folder: Path, *overrides: str, chaos: str = "", prefork: Prefork | None = None
) -> RunFolder:
    """A run to its end."""
    processes = start_ranks(
        config, ranks, f"run.dir={folder}", *overrides, logs=_logs(folder, 0), chaos=chaos, prefork=prefork
    )
    try:
        ends = [process.wait(LIFE_S) for process in processes]
        assert ends == [0] * ranks, (ends, _said(folder, 0))
    finally:
        _end(processes)
    return RunFolder(folder)


def disturbed(
    config: Path,
    stage: int,
    ranks: int,
    folder: Path,
    planned: Iterator[Death],
    *overrides: str,
    kills: int,
    draw: random.Random,
    chaos: str = "",
    damage: float = 0.2,
    prefork: Prefork | None = None,
) -> Story:
    """Kill a run so many times, or as often as it takes to its end, and let it end. `chaos` are faults of every life.

    After a share of `damage` of the deaths, a bit of the newest checkpoint is flipped.
    """
    run, story, damaged = RunFolder(folder), Story(stage, ranks), set[int]()
    everything = (f"run.dir={folder}", f"engine.zero_stage={stage}", *overrides)
    while run.status() != "done" or story.lives[-1].killed:  # a run that is done may still upload and delete
        death = next(planned) if story.kills < kills else Death("none", rank=-2)
        faults = " ".join(part for part in (chaos, death.chaos if death.point != "none" else "") if part)
        number, expected = len(story.lives), _newest_good(run)
        processes = start_ranks(config, ranks, *everything, logs=_logs(folder, number), chaos=faults, prefork=prefork)
        try:
            noticed = _live(processes, death, run, number)
        finally:
            _end(processes)
        killed = any(process.returncode == -9 for process in processes)
        resumed = _headlines(run)[-1] if len(_headlines(run)) > sum(life.resumed >= 0 for life in story.lives) else -1
        story.lives.append(Life(death, resumed, killed, noticed=noticed))
        if resumed not in (-1, expected):
            story.problems.append(
                f"life {number} went on from step {resumed}, and the newest checkpoint was {expected}"
            )
        if not killed and run.status() != "done":
            story.problems.append(f"life {number} ({death}) ended by itself: {_said(folder, number)}")
            break
        story.problems += [f"after life {number} ({death}): {problem}" for problem in _unsound(run, damaged)]
        if draw.random() < damage and len(layout.list_steps(run.checkpoints)) > 1 and run.status() != "done":
            newest = layout.list_steps(run.checkpoints)[-1]
            if _newest_good(run) == newest:
                victims = sorted((run.checkpoints / layout.checkpoint_name(newest)).iterdir())
                flip_a_bit(draw.choice(victims))
                story.lives[-1].damaged = True
                damaged.add(newest)
    return story


def differences(run: RunFolder, model: RunFolder) -> list[str]:
    """Everything in which the end of a run is not that of another one, or not clean."""
    found = []
    for path, other in ((run.metrics, model.metrics), (run.evaluations, model.evaluations), (run.audit, model.audit)):
        mine, theirs = (list(map(_timeless, read_lines(file))) for file in (path, other))
        if mine != theirs:
            first = next(
                (number for number, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), "end"
            )
            found.append(f"{path.name}: {len(mine)} lines against {len(theirs)}, other ones from line {first} on")
    for kind in ("checkpoints", "weights"):
        if _hashes(run.path / kind) != _hashes(model.path / kind):
            steps = (sorted(_hashes(folder.path / kind)) for folder in (run, model))
            found.append(f"{kind}: {next(steps)} against {next(steps)}, or other bytes")
    jumps = [[jump[:3] for jump in folder.read_skipped()] for folder in (run, model)]
    if jumps[0] != jumps[1]:
        found.append(f"jumps: {jumps[0]} against {jumps[1]}")
    return found + leftovers(run)


def differences_in_store(run: RunFolder, store: RemoteRun) -> list[str]:
    """Everything in which an object store does not hold exactly the saves of a run, whole."""
    found = []
    for kind in ("checkpoints", "weights"):
        saves, place = store.list_saves(kind), run.path / kind
        if list(saves) != layout.list_steps(place):
            found.append(f"{kind}: {list(saves)} in the store, {layout.list_steps(place)} on the disk")
            continue
        for step, names in saves.items():
            folder = place / layout.checkpoint_name(step)
            sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
            if names != sizes:
                found.append(f"{kind}, step {step}: {names} in the store, {sizes} on the disk")
            for name, size in names.items():
                if store.read_file(f"{kind}/{folder.name}/{name}", size) != (folder / name).read_bytes():
                    found.append(f"{kind}, step {step}: {name} has other bytes in the store")
    return found


def leftovers(run: RunFolder) -> list[str]:
    """What a run that is done should not leave: a status, files of its work, a lock, processes."""
    found = [] if run.status() == "done" else [f"status is {run.status()}"]
    found += [f"left over: {path}" for path in run.path.rglob(".*") if path.name != ".lock"]
    found += [f"left over: {path}" for path in run.heartbeats.glob("*")]
    run.check_free()
    found += [f"process {pid} is left" for pid in processes_of(run)]
    return found


def processes_of(run: RunFolder) -> list[int]:
    """Processes whose command line names the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if f"run.dir={run.path}".encode() in arguments:
            found.append(int(path.parent.name))
    return found


def wait_until(happened: Callable[[], Any], processes: "Sequence[subprocess.Popen[bytes]]", what: str) -> None:
    """Until something is true; fails when all processes have ended before."""
    deadline = time.monotonic() + LIFE_S
    while not happened():
        ended = all(process.poll() is not None for process in processes)
        assert happened() or not ended, f"ended before {what}"
        assert time.monotonic() < deadline, f"not in {LIFE_S} s: {what}"
        time.sleep(0.02)


def _live(processes: "list[subprocess.Popen[bytes]]", death: Death, run: RunFolder, number: int) -> bool | None:
    """Until the death, or the end. Whether all ranks that were left alone ended by themselves; None where none was."""
    begun, moment = len(_headlines(run)), time.monotonic()
    deadline = moment + LIFE_S
    trains = death.point != RANDOM_POINTS[1]
    while all(process.poll() is None for process in processes):
        if not trains and len(_headlines(run)) > begun:
            trains, moment = True, time.monotonic()
        if death.point in RANDOM_POINTS and trains and time.monotonic() > moment + death.after_s:
            processes[death.rank].kill()
            processes[death.rank].wait()
            break
        assert time.monotonic() < deadline, f"life {number} ({death}) of {run.path} hangs: {_said(run.path, number)}"
        time.sleep(0.01)
    if all(process.poll() in (None, 0) for process in processes):  # the end: the others are on their way
        for process in processes:
            process.wait(LIFE_S)
        return None
    if not death.alone:
        return None
    until = time.monotonic() + ALONE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
    return all(process.poll() is not None for process in processes)


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        if process.poll() is None:
            kill_all(process)


def _newest_good(run: RunFolder) -> int:
    found = layout.find_newest(run.checkpoints)
    return 0 if found is None else int(found[1]["step"])


def _unsound(run: RunFolder, damaged: Collection[int]) -> Iterator[str]:
    """A kill at any moment leaves the whole checkpoint or none, and a status of a run that is not over."""
    for kind in (run.checkpoints, run.weights):
        for step in set(layout.list_steps(kind)) - set(damaged if kind == run.checkpoints else ()):
            try:
                layout.verify(kind / layout.checkpoint_name(step))
            except layout.CheckpointError as error:
                yield str(error)
    if run.status() not in (None, "running", "done"):
        yield f"status is {run.status()}"


def _headlines(run: RunFolder) -> list[int]:
    """The step from which each start went on, as its log says."""
    log = run.logs / "train.log"
    lines = log.read_text().splitlines() if log.exists() else []
    ends = [line.rsplit(", ", 1)[-1] for line in lines if " tokens a step, " in line]
    return [0 if end == "from scratch" else int(end.rsplit(" ", 1)[1]) for end in ends]


def _hashes(saves: Path) -> dict[int, list[tuple[str, str]]]:
    """By step, the sha256 of the files that hold tensors or generators: nothing in them knows of kills."""
    found = {}
    for step in layout.list_steps(saves):
        entries = layout.read_manifest(saves / layout.checkpoint_name(step))
        found[step] = [(entry.name, entry.sha256) for entry in entries if entry.name.startswith("rank-")]
    return found


def _timeless(line: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in line.items() if key not in TIMED})


def _logs(folder: Path, number: int) -> Path:
    return folder.parent / f"{folder.name}-logs" / f"{number:03d}"


def _said(folder: Path, number: int) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(_logs(folder, number).iterdir()))
