"""Hundreds of kills over the ZeRO stages: does every run end as if nothing had happened?

Each scenario, a stage on so many ranks, is trained once undisturbed and then again and again with kill -9 at random moments
and at named points of saving, loading, evaluating, rolling back and starting; after a fifth of them a bit of the newest
checkpoint is flipped. One scenario copies everything to an S3 store, and dies while it does. Every run meets one batch that
makes its loss NaN, and rolls back. What is compared is in tests/support/chaos_run.py: losses, evaluations, audit, weights and
moments, all bitwise, and what the store holds.

`python -m benchmarks.chaos [--kills 200] [--seed 0] [--jobs 2] [--folder /dev/shm] [--report FILE]`
"""

import argparse
import math
import os
import platform
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

from pretrain.checkpoint.remote import RemoteRun
from pretrain.config.schema import StoreConfig
from pretrain.run_folder import RunFolder
from tests.support.chaos_run import (
    ON_ANY_RANK,
    ON_RANK_0,
    RANDOM_POINTS,
    WHILE_UPLOADING,
    Story,
    deaths,
    differences,
    differences_in_store,
    disturbed,
    undisturbed,
)
from tests.support.faulty_proxy import LOOPBACK
from tests.support.object_store import ObjectStore
from tests.support.prefork import Prefork
from tests.support.processes import ENVIRONMENT
from tests.support.runs import make_run

STEPS = 60
BUCKET = "s3://chaos"
POISON = f"poison:sample={8 * STEPS // 2},factor=nan slow_flush:seconds=0.02"
THREE = ("batch.global_batch_size=6",)
# Stage, ranks, share of the kills, overrides: a start of one rank costs half of one of two.
UPLOADS = ("data.store.attempts=2",)
SCENARIOS = [
    *((stage, 1, 0.14, ()) for stage in range(4)),
    *((stage, 2, 0.075, ()) for stage in range(4)),
    (3, 3, 0.04, THREE),
    (2, 1, 0.1, UPLOADS),
]


def chaos_config(folder: Path) -> Path:
    """A run that saves, prunes, evaluates and writes weights all the time."""
    return make_run(
        folder,
        schedule={"total_steps": STEPS, "warmup_steps": 5},
        checkpoint={"every_steps": 3, "keep_last": 2, "keep_best": 1, "weights_every_steps": 10},
        eval={"every_steps": 15, "max_sequences": 8},
        data={
            "train": {"a": {"path": str(folder / "train")}},
            "valid": {"b": {"path": str(folder / "valid")}},
            **{"seq_len": 32, "lanes": 8, "span": 4, "audit": True},
        },
        guard={"on_nonfinite": "rollback"},
        engine={"zero_stage": 2, "precision": "fp32", "device": "cpu", "threads_per_process": 1},
    )


class Scenario:
    """One stage on so many ranks: an undisturbed run, and runs that are killed until there were enough kills."""

    def __init__(
        self, stage: int, ranks: int, kills: int, overrides: Sequence[str], seed: int, config: Path, folder: Path
    ) -> None:
        self.stage, self.ranks, self.kills, self.overrides = stage, ranks, kills, overrides
        self.config, self.folder = config, folder / f"stage-{stage}-ranks-{ranks}{'-uploads' * self.uploads}"
        self.stories: list[Story] = []
        self.working = False
        self._draw = random.Random(f"{seed} {stage} {ranks}")
        points = list(WHILE_UPLOADING) if self.uploads else [*ON_ANY_RANK, *ON_RANK_0, *RANDOM_POINTS]
        self._draw.shuffle(points)
        self._planned = deaths(self._draw, ranks, points, uploads=self.uploads)
        self._model: RunFolder | None = None

    @property
    def share(self) -> float:
        """How much of it is done."""
        return sum(story.kills for story in self.stories) / self.kills

    @property
    def uploads(self) -> bool:
        """Whether everything is copied to an object store as well."""
        return self.overrides == UPLOADS

    def run(self, prefork: Prefork) -> None:
        """One run more."""
        if self._model is None:
            overrides = (f"engine.zero_stage={self.stage}", *self.overrides)
            self._model = undisturbed(
                self.config, self.ranks, self.folder / "undisturbed", *overrides, chaos=POISON, prefork=prefork
            )
        place = self.folder / f"{len(self.stories):03d}"
        address = f"{BUCKET}/{place.name}"
        there = (f"checkpoint.upload={address}",) if self.uploads else ()
        story = disturbed(
            *(self.config, self.stage, self.ranks, place, self._planned, *self.overrides, *there),
            kills=math.ceil(self.kills * (1 - self.share)),
            draw=self._draw,
            chaos=POISON,
            prefork=prefork,
        )
        story.problems += differences(RunFolder(place), self._model)
        story.uploads = self.uploads
        if self.uploads:
            story.problems += differences_in_store(RunFolder(place), RemoteRun(address, StoreConfig()))
        self.stories.append(story)
        if not story.problems:
            shutil.rmtree(place)


def work(scenarios: Sequence[Scenario], turn: threading.Lock, prefork: Prefork, until: float, wrote: Callable) -> None:
    """Take the scenario that is behind, until all are done or the time is up."""
    while time.monotonic() < until:
        with turn:
            open_ones = [scenario for scenario in scenarios if scenario.share < 1 and not scenario.working]
            if not open_ones:
                return
            chosen = min(open_ones, key=lambda scenario: scenario.share)
            chosen.working = True
        chosen.run(prefork)
        with turn:
            chosen.working = False
            wrote(chosen)


def report(stories: list[Story], command: str, seconds: float) -> str:
    """The tables as Markdown."""
    kills, bad = sum(story.kills for story in stories), [story for story in stories if story.problems]
    lines = [
        "# Killed, and no loss changed",
        "",
        f"`{command}` · {date.today()} · {platform.machine()}, Python {platform.python_version()}, torch "
        f"{version('torch')}, deepspeed {version('deepspeed')} · {seconds / 60:.0f} minutes",
        "",
        f"{kills} kills in {len(stories)} runs; {len(stories) - len(bad)} of {len(stories)} runs ended bitwise equal to the "
        f"undisturbed one and left nothing behind.",
        "",
        "| ZeRO stage | ranks | runs | kills | starts | went on from step (median; from 0) | checkpoints damaged | "
        "ranks left alone: ended by themselves | bitwise equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for uploads, ranks, stage in sorted({(story.uploads, story.ranks, story.stage) for story in stories}):
        mine = [story for story in stories if (story.uploads, story.ranks, story.stage) == (uploads, ranks, stage)]
        lives = [life for story in mine for life in story.lives]
        resumed = [life.resumed for life in lives if life.resumed >= 0]
        alone = [life.noticed for life in lives if life.noticed is not None]
        lines.append(
            f"| {stage} | {ranks}{', uploading' if uploads else ''} | "
            f"{len(mine)} | {sum(story.kills for story in mine)} | {len(lives)} | "
            f"{statistics.median(resumed):.0f}; {resumed.count(0)} | {sum(life.damaged for life in lives)} | "
            f"{f'{sum(alone)} of {len(alone)}' if alone else '–'} | "
            f"{'no' if any(story.problems for story in mine) else 'yes'} |"
        )
    lines += ["", "| point | kills |", "|---|---|"]
    points = Counter(life.death.point for story in stories for life in story.lives if life.killed)
    lines += [f"| {point.replace(',name=', ' ')} | {count} |" for point, count in points.most_common()]
    lines += [f"\nStage {story.stage}, {story.ranks} ranks: {'; '.join(story.problems)}" for story in bad]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after that")
    parser.add_argument(
        "--folder", type=Path, help="a file system in memory makes it faster: fsync costs nothing there"
    )
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    begun = time.monotonic()
    command = shlex.join(["python", "-m", "benchmarks.chaos", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=options.folder) as scratch:
        store = ObjectStore()
        # Past its proxy, which is for reads.
        environment = {**store.environment, "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{store.port}"}
        for target in (ENVIRONMENT, os.environ):
            target.update(environment)
        store.file_system(store.port).mkdir(BUCKET.removeprefix("s3://"))
        folder, prefork = Path(scratch), Prefork()
        config = chaos_config(folder)
        scenarios = [
            Scenario(stage, ranks, math.ceil(options.kills * share), overrides, options.seed, config, folder)
            for stage, ranks, share, overrides in SCENARIOS
        ]

        def wrote(scenario: Scenario) -> None:
            """The report so far."""
            story = scenario.stories[-1]
            outcome = "; ".join(story.problems) or "all equal"
            print(f"stage {story.stage}, {story.ranks} ranks, {story.kills} kills: {outcome}", flush=True)
            stories = [story for each in scenarios for story in each.stories]
            text = report(stories, command, time.monotonic() - begun)
            if options.report:
                options.report.write_text(text)

        turn, until = threading.Lock(), begun + 60 * options.minutes
        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(work, scenarios, turn, prefork, until, wrote) for _ in range(options.jobs)]:
                future.result()
        prefork.stop()
        store.stop()
    return int(any(story.problems for scenario in scenarios for story in scenario.stories))


if __name__ == "__main__":
    sys.exit(main())
