"""Minimal fine-tuning of an exported directory with transformers alone, as a user of the export would do it.

`python -m pretrain.convert.fine_tune EXPORT TEXTS.jsonl --steps 3`
"""

import json
import os
import tempfile
from pathlib import Path

import click


def continue_training(folder: Path, texts: list[str], *, steps: int, lr: float = 3e-4) -> list[float]:
    """Losses of `steps` steps of transformers' Trainer, each on all `texts`. Saves nothing."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports deepspeed, which would log a warning
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,  # required; nothing is saved there
                max_steps=steps,
                per_device_train_batch_size=len(texts),
                learning_rate=lr,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                use_cpu=True,
                dataloader_pin_memory=False,
                disable_tqdm=True,
                report_to=[],
            ),
            train_dataset=[tokenizer(text, truncation=True, max_length=256) for text in texts],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        # The Trainer's own log lines are Python dictionaries; ours are below.
        trainer.remove_callback(
            next(type(c) for c in trainer.callback_handler.callbacks if "Print" in type(c).__name__)
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@click.command()
@click.argument("folder", metavar="EXPORT", type=click.Path(exists=True, path_type=Path))
@click.argument("texts", metavar="TEXTS.jsonl", type=click.Path(exists=True, path_type=Path))
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1))
def main(folder: Path, texts: Path, steps: int) -> None:
    """Train EXPORT for a few steps of transformers' Trainer on the first eight texts of TEXTS.jsonl."""
    with texts.open() as lines:
        documents = [json.loads(line)["text"] for line, _ in zip(lines, range(8), strict=False)]
    for step, loss in enumerate(continue_training(folder, documents, steps=steps), start=1):
        click.echo(f"transformers' Trainer, step {step}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
