"""All output of a run in training: metrics, audit, TensorBoard, console and log. On rank 0 only."""

from collections.abc import Iterator
from contextlib import contextmanager
from locale import getpreferredencoding
from pathlib import Path
from typing import Any

from pretrain.config.schema import Config
from pretrain.run_folder import RunFolder
from pretrain.training.console import ConsoleReporter
from pretrain.training.metrics import MetricsWriter

SHOWN = 100  # characters of a sample on the console


class Recorder:
    """`resumed_step` is None for a start from scratch."""

    def __init__(self, folder: RunFolder, config: Config, *, resumed_step: int | None, speaks: bool) -> None:
        self._folder, self._tensorboard = folder, config.log.tensorboard
        self._metrics: MetricsWriter | None = None
        self._reporter: ConsoleReporter | None = None
        if speaks:
            self._reporter = ConsoleReporter(
                Path(folder.logs / "train.log"),
                total_steps=config.schedule.total_steps,
                every_steps=config.log.every_steps,
            )
            self.rewind(resumed_step)

    def rewind(self, step: int | None) -> None:
        """Remove metrics beyond a step that training goes back to."""
        if self._reporter is None:
            return
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = MetricsWriter(self._folder, resumed_step=step, tensorboard=self._tensorboard)
        for note in self._metrics.notes:
            self.say(note)

    def start(self, step: int) -> None:
        """Show the progress bar."""
        if self._reporter is not None:
            self._reporter.start(step)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Label the progress bar while something other than steps is done."""
        if self._reporter is not None:
            self._reporter.label(text)
        try:
            yield
        finally:
            if self._reporter is not None:
                self._reporter.label(None)

    def say(self, text: str) -> None:
        """Print a line, and log it."""
        if self._reporter is not None:
            self._reporter.say(text)

    def step(self, values: dict[str, Any]) -> None:
        """One optimizer step."""
        if self._metrics is not None and self._reporter is not None:
            self._metrics.step(values)
            self._reporter.step(values)

    def evaluation(self, values: dict[str, Any]) -> None:
        """One evaluation."""
        if self._metrics is not None:
            self._metrics.evaluation(values)
            bits = f", {values['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in values else ""
            right = f", {values['accuracy']:.1%} of tokens right"
            self.say(f"validation at step {values['step']}: loss {values['loss']:.4f}{bits}{right}")

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Completions of `eval.prompts`; the first one is shown."""
        if self._metrics is not None:
            self._metrics.samples(step, samples)
            self.say(f"sample at step {step}: {_in_one_line(samples[0]['prompt'] + samples[0]['text'])}")

    def audit(self, values: dict[str, Any]) -> None:
        """Digest of the sequences of one step."""
        if self._metrics is not None:
            self._metrics.audit(values)

    def close(self) -> None:
        """Close the files and restore the terminal."""
        if self._metrics is not None:
            self._metrics.close()
        if self._reporter is not None:
            self._reporter.close()


def _in_one_line(text: str) -> str:
    """Start of a generated text, without control characters and what the console's encoding lacks."""
    line = " ".join(text.split())
    shown = "".join(character if character.isprintable() else " " for character in line[:SHOWN])
    encoding = getpreferredencoding(False)
    return shown.encode(encoding, "replace").decode(encoding) + (" ..." if len(line) > SHOWN else "")
