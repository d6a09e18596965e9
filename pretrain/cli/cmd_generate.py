"""`pretrain generate`. What computes is imported when the command runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretrain.generation.options import GenerateOptions, refuse_contradictions
from pretrain.generation.prompts import gather_prompts

if TYPE_CHECKING:
    from pretrain.generation.completion import Completion


@click.command()
@click.argument("path", metavar="RUN|DIR", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="A prompt a line: .jsonl, or plain text.")
@click.option("--step", type=int, help="Checkpoint to use.  [default: the newest]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: 0.8]")
@click.option("--top-k", type=click.IntRange(0), help="0 keeps all tokens.  [default: 0]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="1 keeps all tokens.  [default: 1]")
@click.option("--greedy", is_flag=True, help="The same as --temperature 0.")
@click.option("--seed", type=click.IntRange(0, 2**62), help="The same seed gives the same text.  [default: 0]")
@click.option("--num-samples", type=click.IntRange(1), default=1, show_default=True, help="Texts for each prompt.")
@click.option("--beams", type=click.IntRange(1), default=1, show_default=True, help="Width of a beam search.")
@click.option(
    "--length-penalty",
    type=click.FloatRange(-20, 20),
    help="Of a beam search; above 0 favours long texts.  [default: 1]",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option(
    "--stop-id", multiple=True, type=click.IntRange(0), help="End at this token, as at the end of a document."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts made at once.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="For weights that were saved without one.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each text.")
def generate(
    path: Path,
    texts: tuple[str, ...],
    file: Path | None,
    step: int | None,
    batch_size: int,
    tokenizer: Path | None,
    dtype: str,
    device: str,
    threads: int,
    as_json: bool,
    **options: object,
) -> None:
    """Continue each TEXT with the weights of a run, or of a Hugging Face directory.

    One text is shown as it is made. A text ends with its document, or where the model's context does.
    """
    from pretrain.generation.session import continue_all, encode_all, load

    wishes = GenerateOptions(**options)  # type: ignore[arg-type]
    refuse_contradictions(wishes)
    prompts = gather_prompts(texts, file)
    logits_fn, codec = load(path, step, tokenizer, dtype, device, threads)
    rows = encode_all(codec, logits_fn, prompts, wishes.stop_id)
    streams = len(prompts) * wishes.num_samples * wishes.beams == 1 and not as_json
    show: Callable[[str], None] = (lambda piece: click.echo(piece, nl=False)) if streams else (lambda _: None)
    if streams:
        show(prompts[0])
    finished = continue_all(logits_fn, codec, rows, wishes, batch_size, show)
    for number, (sample, completion) in enumerate(finished):
        prompt = prompts[number // wishes.num_samples]
        if as_json:
            click.echo(as_line(prompt, sample, completion))
        elif streams:
            click.echo()
        else:
            click.echo(f"{'' if number == 0 else chr(10)}{prompt}{completion.text}")
        if completion.finish == "context":
            tokens = logits_fn.config.max_seq_len
            click.echo(f"text {number + 1} ends with the model's context: model.max_seq_len={tokens}", err=True)


def as_line(prompt: str, sample: int, completion: Completion) -> str:
    """One JSON object on one line."""
    values = {"prompt": prompt, "sample": sample, **completion._asdict()}
    if completion.score is None:
        del values["score"]
    return json.dumps(values, ensure_ascii=False)
