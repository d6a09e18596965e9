"""`pretrain generate`. Heavy modules are imported when the command runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.generation.options import GenerateOptions, check_options
from pretrain.generation.prompts import gather_prompts

if TYPE_CHECKING:
    from pretrain.generation.completion import Completion


@click.command()
@click.argument("path", metavar="RUN|DIR", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--prompts", "file", type=click.Path(path_type=Path), help="File with one prompt per line: .jsonl or plain text."
)
@click.option("--step", type=int, help="Checkpoint to use.  [default: the newest]")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=100, show_default=True, help="Limit on new tokens per text."
)
@click.option("--temperature", type=click.FloatRange(0), help="0 decodes greedily.  [default: 0.8]")
@click.option("--top-k", type=click.IntRange(0), help="Sample from the K most likely tokens; 0 is all.  [default: 0]")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the most likely tokens with this total probability; 1 is all.  [default: 1]",
)
@click.option("--greedy", is_flag=True, help="Same as --temperature 0.")
@click.option("--seed", type=click.IntRange(0, 2**62), help="The same seed gives the same text.  [default: 0]")
@click.option("--num-samples", type=click.IntRange(1), default=1, show_default=True, help="Texts per prompt.")
@click.option("--beams", type=click.IntRange(1), default=1, show_default=True, help="Beam width; 1 is no beam search.")
@click.option(
    "--length-penalty",
    type=click.FloatRange(-20, 20),
    help="For beam search; above 0 favors long texts.  [default: 1]",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option(
    "--stop-id",
    multiple=True,
    type=click.IntRange(0),
    help="Stop at this token, like at the end of a document. Repeatable.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts per batch.")
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=click.Path(path_type=Path),
    help="Tokenizer, if the weights were saved without one.",
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per text.")
def generate(
    path: Path,
    texts: tuple[str, ...],
    file: Path | None,
    step: int | None,
    batch_size: int,
    tokenizer_file: Path | None,
    dtype: str,
    device: str,
    threads: int,
    as_json: bool,
    **generate_options: object,
) -> None:
    """Continue each TEXT with the weights of a run, or of a Hugging Face directory.

    A single text is streamed. A text ends at the end of its document, or when the model's context is full.
    """
    from pretrain.generation.session import encode_prompts, generate_completions, load_model

    options = GenerateOptions(**generate_options)  # type: ignore[arg-type]
    check_options(options)
    prompts = gather_prompts(texts, file)
    logits_fn, tokenizer = load_model(path, step, tokenizer_file, dtype, device, threads)
    rows = encode_prompts(tokenizer, logits_fn, prompts, options.stop_id)
    streaming = len(prompts) * options.num_samples * options.beams == 1 and not as_json
    on_text: Callable[[str], None] = (lambda piece: click.echo(piece, nl=False)) if streaming else (lambda _: None)
    if streaming:
        on_text(prompts[0])
    completions = generate_completions(logits_fn, tokenizer, rows, options, batch_size, on_text)
    for number, (sample, completion) in enumerate(completions):
        prompt = prompts[number // options.num_samples]
        if as_json:
            click.echo(json_line(prompt, sample, completion))
        elif streaming:
            click.echo()
        else:
            click.echo(f"{'' if number == 0 else chr(10)}{prompt}{completion.text}")
        if completion.finish == "context":
            tokens = logits_fn.config.max_seq_len
            click.echo(f"text {number + 1} is cut at the model's context: model.max_seq_len={tokens}", err=True)


def json_line(prompt: str, sample: int, completion: Completion) -> str:
    """A completion as one line of JSON."""
    values = {"prompt": prompt, "sample": sample, **completion._asdict()}
    if completion.score is None:
        del values["score"]
    return json.dumps(values, ensure_ascii=False)
