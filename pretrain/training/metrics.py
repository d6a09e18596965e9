"""Metrics of a run in full precision, on rank 0: metrics.jsonl, evaluations.jsonl, samples.jsonl, audit.jsonl, TensorBoard."""

import json
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pretrain.run_folder import RunFolder, parse_lines
from pretrain.storage.files import append_line, publish_file

TENSORBOARD_GROUPS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "tokens_per_second": "speed/tokens_per_second",
    "epoch": "data/epoch",
}


class MetricsWriter:
    """Appends lines, after removing those beyond the step that training resumes from.

    `resumed_step` is None for a start from scratch, which removes all. `notes` says which lines were found damaged.
    """

    def __init__(self, folder: RunFolder, *, resumed_step: int | None, tensorboard: bool) -> None:
        kept = -1 if resumed_step is None else resumed_step
        files = (folder.metrics, folder.evaluations, folder.samples, folder.audit)
        self.notes = [note for path in files if (note := keep_until(path, kept, folder.logs))]
        self._audit_path = folder.audit
        self._audit: IO[str] | None = None
        self._samples_path = folder.samples
        self._sampled = max((line["step"] for line in read_lines(folder.samples)), default=-1)
        self._steps = folder.metrics.open("a")
        self._evaluations = folder.evaluations.open("a")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder.tensorboard), purge_step=kept + 1)

    def step(self, values: dict[str, Any]) -> None:
        """One optimizer step. Flushed at once, so that a killed run keeps it."""
        _append(self._steps, values)
        if self._board is not None:
            for name, tag in TENSORBOARD_GROUPS.items():
                if values[name] is not None:
                    self._board.add_scalar(tag, values[name], values["step"])
            for source, used in values["sources"].items():
                for unit, value in used.items():
                    self._board.add_scalar(f"data/{unit}/{source}", value, values["step"])

    def evaluation(self, values: dict[str, Any]) -> None:
        """One evaluation; every number in it but `step` becomes a scalar."""
        _append(self._evaluations, values)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"valid/{name}", value, values["step"])
            self._board.flush()

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Samples of one evaluation. A resumed run that repeats a step writes them once: they are the same."""
        if step <= self._sampled:
            return
        self._sampled = step
        with self._samples_path.open("a") as file:
            _append(file, {"step": step, "samples": samples})
        if self._board is not None:
            for number, sample in enumerate(samples, start=1):
                self._board.add_text(f"samples/{number:02d}", _as_markdown(sample["prompt"] + sample["text"]), step)
            self._board.flush()

    def audit(self, values: dict[str, Any]) -> None:
        """Digest of the sequences of one step."""
        if self._audit is None:  # only a run with data.audit has the file
            self._audit = self._audit_path.open("a")
        _append(self._audit, values)

    def close(self) -> None:
        """Finish the files."""
        for file in (self._steps, self._evaluations, self._audit, self._board):
            # Lines were flushed one by one: what is left in a buffer has already been reported as lost.
            with suppress(OSError):
                if file is not None:
                    file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All intact lines of a file."""
    return parse_lines(path.read_bytes())[0] if path.exists() else []


def keep_until(path: Path, step: int, logs: Path) -> str | None:
    """Keep intact lines up to `step`; copy the file to logs/ first if lines are removed: those steps are about to be redone.

    Returns a note if lines were damaged.
    """
    if not path.exists():
        return None
    data, note = path.read_bytes(), None
    lines, damaged = parse_lines(data)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) != len(lines) or damaged or (data and not data.endswith(b"\n")):
        number = len(list(logs.glob(f"replaced-*-{path.name}"))) + 1
        copy = logs / f"replaced-{number:03d}-{path.name}"
        copy.write_bytes(data)
        note = f"{path}: {damaged} damaged lines left out; {copy} has the file as it was" if damaged else None
    # A new file in any case: an older attempt that is still alive keeps writing to the old one.
    publish_file(path, "".join(json.dumps(line) + "\n" for line in kept))
    return note


def _as_markdown(text: str) -> str:
    """Verbatim text, as a block of code."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _append(file: IO[str], values: dict[str, Any]) -> None:
    append_line(file, json.dumps(values))
