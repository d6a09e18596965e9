"""`pretrain quickstart`: the complete pipeline on real text, with the commands that a user types.

DIR/corpus/      train.jsonl, valid.jsonl: the Python standard library
DIR/tokenizer/   tokenizer.model
DIR/shards/      train/, valid/
DIR/run/         a run, killed with kill -9 after its first checkpoint and resumed
DIR/export/      a Hugging Face directory, fine-tuned for three steps with transformers
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.processes import kill_tree
from pretrain.cli.quickstart.stdlib_corpus import CorpusStats, write_corpus
from pretrain.config import load_config
from pretrain.errors import PretrainError, UserError
from pretrain.plan.counts import count_parameters
from pretrain.report.numbers import format_megabytes
from pretrain.run_folder import RunFolder
from pretrain.training.metrics import read_lines

CONFIG = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
MARKER = ".quickstart"
PROCESSES = 2
PROMPT = "def read_text(path"


class Quickstart:
    """All steps of the quickstart, in DIR."""

    def __init__(self, out: Path, overrides: Sequence[str]) -> None:
        self.out, self.overrides = out, overrides
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 120
        self.run = RunFolder(out / "run")
        self.config = load_config(CONFIG, overrides).config
        self.killed_at = 0
        self.sample = ""
        self.fine_tuning: list[str] = []

    def run_all(self) -> None:
        """Run all steps and print the summary."""
        started = time.monotonic()
        self._title("1  Corpus: the Python standard library")
        corpus = write_corpus(self.out / "corpus")
        self.console.print(
            f"{corpus.files} source files in {corpus.root} and the docstrings of {corpus.docstrings} built-in modules: "
            f"{format_megabytes(corpus.bytes)}",
            soft_wrap=True,
        )
        self._title("2  Tokenizer: SentencePiece BPE, lossless")
        train_text, valid_text = (str(self.out / "corpus" / f"{part}.jsonl") for part in ("train", "valid"))
        model = str(self.out / "tokenizer" / "tokenizer.model")
        size = str(self.config.model.vocab_size)
        self._pretrain(
            *("tokenizer", "train", "--input", train_text, "--vocab-size", size, "--sample-bytes", "4MB"),
            *("--output", str(self.out / "tokenizer")),
        )
        self._title("3  Shards: plain WebDataset tars with random access")
        for part, text in (("train", train_text), ("valid", valid_text)):
            shards = str(self.out / "shards" / part)
            workers = ("--workers", str(PROCESSES))
            self._pretrain("tokenizer", "encode", "--tokenizer", model, "--input", text, "--output", shards, *workers)
        self._title(f"4  Training: {PROCESSES} processes under DeepSpeed ZeRO-{self.config.engine.zero_stage}, killed")
        self._train_and_kill()
        self._title("5  Resume: the same command again")
        self._pretrain(*self._train_command())
        self._title("6  Export: a verified Hugging Face directory")
        self._pretrain("export", str(self.run.path), str(self.out / "export"))
        self._title("7  Fine-tuning with transformers")
        fine_tune = [sys.executable, "-m", "pretrain.convert.fine_tune", str(self.out / "export"), valid_text]
        self.fine_tuning = self._command(fine_tune, "python -m " + " ".join(fine_tune[2:])).splitlines()
        self._title("8  Sample")
        self.sample = self._pretrain("generate", str(self.run.path), PROMPT, "--max-new-tokens", "60")
        self._summary(corpus, time.monotonic() - started)

    def _train_command(self) -> list[str]:
        out = self.out
        paths = {
            "run.dir": self.run.path,
            "data.train.stdlib.path": out / "shards" / "train",
            "data.valid.stdlib.path": out / "shards" / "valid",
            "data.tokenizer": out / "tokenizer" / "tokenizer.model",
        }
        config = os.path.relpath(CONFIG)
        keys = [*(f"{key}={value}" for key, value in paths.items()), *self.overrides]
        return ["launch", "local", config, "--nproc", str(PROCESSES), *keys]

    def _train_and_kill(self) -> None:
        """Start the run, and kill -9 every process some steps after the first checkpoint."""
        command = self._train_command()
        self.console.print(f"[bold]$ pretrain {' '.join(command)}", soft_wrap=True)
        child = subprocess.Popen([sys.executable, "-m", "pretrain.cli", *command])
        # Some steps after the first checkpoint are lost, and repeated after the resume.
        kill_step = self.config.checkpoint.every_steps * 4 // 3
        while child.poll() is None and _last_step(self.run.metrics) < kill_step:
            time.sleep(0.2)
        if child.poll() is not None:
            raise PretrainError(f"training exited with code {child.returncode}", hint=f"see {self.run.logs}")
        kill_tree(child.pid)
        child.wait()
        self.killed_at = _last_step(self.run.metrics)
        self.console.print(f"[red]kill -9 of every process after step {self.killed_at}")

    def _pretrain(self, *arguments: str) -> str:
        shown = " ".join(f'"{a}"' if " " in a else a for a in ("pretrain", *arguments))
        return self._command([sys.executable, "-m", "pretrain.cli", *arguments], shown)

    def _command(self, command: list[str], shown: str) -> str:
        """Print and run a command. Returns its output, except of a training run."""
        self.console.print(f"[bold]$ {shown}", soft_wrap=True)
        # A training run keeps the terminal, for its progress bar.
        if "launch" in command:
            code, output = subprocess.run(command, check=False).returncode, ""
        else:
            done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
            code, output = done.returncode, done.stdout.rstrip("\n")
            self.console.print(output, markup=False, soft_wrap=True)
        if code:
            raise PretrainError(f"`{shown}` exited with code {code}")
        return output

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold cyan]{text}", align="left")

    def _summary(self, corpus: CorpusStats, seconds: float) -> None:
        evaluations, steps = read_lines(self.run.evaluations), read_lines(self.run.metrics)
        first, last = evaluations[0]["bits_per_byte"], evaluations[-1]["bits_per_byte"]
        manifest = json.loads((self.out / "shards" / "train" / "manifest.json").read_text())
        proof = json.loads((self.out / "export" / "proof.json").read_text())
        resumed = self.config.checkpoint.every_steps
        trained = sum(step["seconds"] for step in steps)
        table = Table(title=f"Results after {seconds:.0f} seconds", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        table.add_column(style="cyan")
        for row in (
            ("corpus", f"{corpus.files} files, {format_megabytes(corpus.bytes)}", "corpus/"),
            ("tokenizer", f"{self.config.model.vocab_size} pieces", "tokenizer/tokenizer.model"),
            ("shards", f"{manifest['tokens']:,} tokens of {manifest['documents']} documents", "shards/"),
            ("model", f"{count_parameters(self.config.model):,} parameters", "run/config.yaml"),
            ("training", f"{len(steps)} steps, {steps[-1]['tokens']:,} tokens, {trained:.0f} s", "run/metrics.jsonl"),
            ("killed", f"after step {self.killed_at}, resumed from step {resumed}", "run/checkpoints/"),
            (
                "bits per byte",
                f"{first:.3f} → {last:.3f} on held-out files ({last / first - 1:+.0%})",
                "run/evaluations.jsonl",
            ),
            (
                "export",
                f"logits differ by {proof['logits']['max_abs_difference']:.1e}, "
                f"token ids equal on {proof['tokenizer']['strings']} texts",
                "export/",
            ),
            (
                "fine-tuning",
                "with transformers: loss " + " → ".join(line.rsplit(" ", 1)[-1] for line in self.fine_tuning),
                "",
            ),
            ("sample", Text(self.sample), ""),
        ):
            table.add_row(*row)
        self.console.print()
        self.console.print(table, markup=False)
        out = self.out
        self.console.print("[bold]Next:")
        for command in (
            f'pretrain generate {out}/run "class Path" --greedy',
            f"pretrain evaluate {out}/run",
            f'pretrain inspect attention {out}/run "def read_text(path):" --out {out}/attention.html',
            f"tensorboard --logdir {out}/run/tensorboard",
            f"pretrain launch local {out}/run/config.yaml --nproc {PROCESSES} run.dir={out}/longer "
            "schedule.total_steps=2000",
        ):
            self.console.print(f"  {command}", soft_wrap=True)


def run_quickstart(out: Path, overrides: Sequence[str] = ()) -> None:
    """Run the quickstart in `out`, replacing an earlier one. `overrides` go to the training run.

    Raises UserError if `out` contains anything else.
    """
    if not CONFIG.is_file():
        raise UserError(f"{CONFIG} does not exist", hint="run the quickstart from a clone: pip install -e .")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise UserError(f"{out} exists and is not an earlier quickstart", hint="give a new folder: --out DIR")
    quickstart = Quickstart(out, overrides)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    quickstart.run_all()


def _last_step(metrics: Path) -> int:
    lines = read_lines(metrics)
    return int(lines[-1]["step"]) if lines else 0
