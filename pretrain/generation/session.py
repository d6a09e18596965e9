"""What `pretrain generate` does: load, encode all prompts, and continue them batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pretrain.convert.weight_sources import load_finite, open_weights
from pretrain.distributed.collectives import pick_device
from pretrain.errors import UserError
from pretrain.generation.completion import Completion, complete, complete_by_beams
from pretrain.generation.options import GenerateOptions
from pretrain.generation.prompts import encode_prompt, room
from pretrain.generation.sampling import Sampling, sampler
from pretrain.model.logits_fn import LogitsFn, decoder_logits
from tokenizer.models.base import Tokenizer
from tokenizer.models.open_tokenizer import load_tokenizer

DEFAULT_TEMPERATURE = 0.8


def load(
    path: Path, step: int | None, tokenizer: Path | None, dtype: str, device: str, threads: int
) -> tuple[LogitsFn, Tokenizer]:
    """The weights and their tokenizer. Raises UserError."""
    place = pick_device(device, 0, option="--device ")
    if threads:
        torch.set_num_threads(threads)
    source = open_weights(path, step)
    file = tokenizer or source.tokenizer
    if file is None:
        raise UserError(
            f"{path} was saved without a tokenizer",
            hint="name the one that its shards were made with: --tokenizer FILE; or train with data.tokenizer=FILE",
        )
    codec = load_tokenizer(file)
    model = load_finite(source, path)
    return decoder_logits(model.to(place, torch.bfloat16 if dtype == "bf16" else torch.float32)), codec


def encode_all(
    codec: Tokenizer, logits_fn: LogitsFn, prompts: Sequence[str], stop_ids: Sequence[int] = ()
) -> list[list[int]]:
    """Ids of all prompts.

    Raises UserError for the first that the model cannot continue, and for a stop id that it has not, before anything is
    computed.
    """
    for token in stop_ids:
        if token >= logits_fn.config.vocab_size:
            raise UserError(f"--stop-id {token}: the model has the ids 0 to {logits_fn.config.vocab_size - 1}")
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            rows.append(encode_prompt(codec, prompt))
            room(logits_fn.config, rows[-1], 1)
        except UserError as error:
            where = f"prompt {number}: " if len(prompts) > 1 else ""
            raise UserError(f"{where}{error.message}", hint=error.hint) from None
    return rows


def continue_all(
    logits_fn: LogitsFn,
    codec: Tokenizer,
    prompts: Sequence[list[int]],
    wishes: GenerateOptions,
    batch_size: int,
    show: Callable[[str], None],
) -> Iterator[tuple[int, Completion]]:
    """Of each prompt, its `num_samples` texts with their numbers, 0 and on; so many at once as fit a batch."""
    stop_ids = frozenset({codec.eos_id(), *wishes.stop_id} - {-1})
    if wishes.beams > 1:
        penalty = 1.0 if wishes.length_penalty is None else wishes.length_penalty
        at_once = max(1, batch_size // wishes.beams)
        for start in range(0, len(prompts), at_once):
            found = complete_by_beams(
                logits_fn,
                codec,
                prompts[start : start + at_once],
                beams=wishes.beams,
                max_new_tokens=wishes.max_new_tokens,
                stop_ids=stop_ids,
                length_penalty=penalty,
            )
            for best in found:
                yield from enumerate(best[: wishes.num_samples])
        return
    temperature = DEFAULT_TEMPERATURE if wishes.temperature is None else wishes.temperature
    top_p = 1.0 if wishes.top_p is None else wishes.top_p
    sampling = Sampling(0.0 if wishes.greedy else temperature, wishes.top_k or 0, top_p)
    rows = [(prompt, sample) for prompt in prompts for sample in range(wishes.num_samples)]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        # A text depends on its prompt and its seed, and not on what else is asked for.
        choose = sampler(sampling, [(wishes.seed or 0) + sample for _, sample in batch])
        made = complete(
            logits_fn,
            codec,
            [prompt for prompt, _ in batch],
            choose,
            max_new_tokens=wishes.max_new_tokens,
            stop_ids=stop_ids,
            stop_texts=wishes.stop,
            show=show,
        )
        yield from zip((sample for _, sample in batch), made, strict=True)
