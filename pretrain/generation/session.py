"""Steps of `pretrain generate`: load, encode all prompts, complete them batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pretrain.convert.weight_sources import load_finite, open_weights
from pretrain.distributed.collectives import pick_device
from pretrain.errors import UserError
from pretrain.generation.completion import Completion, complete, complete_by_beams
from pretrain.generation.options import GenerateOptions
from pretrain.generation.prompts import encode_prompt, new_token_limit
from pretrain.generation.sampling import Sampling, seeded_sampler
from pretrain.model.logits_fn import LogitsFn, decoder_logits
from tokenizer.models.base import Tokenizer
from tokenizer.models.open_tokenizer import load_tokenizer

DEFAULT_TEMPERATURE = 0.8


def load_model(
    path: Path, step: int | None, tokenizer_file: Path | None, dtype: str, device: str, threads: int
) -> tuple[LogitsFn, Tokenizer]:
    """The model and its tokenizer. Raises UserError."""
    target = pick_device(device, 0, option="--device ")
    if threads:
        torch.set_num_threads(threads)
    source = open_weights(path, step)
    file = tokenizer_file or source.tokenizer
    if file is None:
        raise UserError(
            f"{path} was saved without a tokenizer",
            hint="give the one that encoded its shards: --tokenizer FILE; or train with data.tokenizer=FILE",
        )
    tokenizer = load_tokenizer(file)
    model = load_finite(source, path)
    return decoder_logits(model.to(target, torch.bfloat16 if dtype == "bf16" else torch.float32)), tokenizer


def encode_prompts(
    tokenizer: Tokenizer, logits_fn: LogitsFn, prompts: Sequence[str], stop_ids: Sequence[int] = ()
) -> list[list[int]]:
    """Ids of all prompts.

    Raises UserError for a prompt that the model cannot continue, or a stop id outside its vocabulary.
    """
    for token in stop_ids:
        if token >= logits_fn.config.vocab_size:
            raise UserError(f"--stop-id {token}: the model has the ids 0 to {logits_fn.config.vocab_size - 1}")
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            rows.append(encode_prompt(tokenizer, prompt))
            new_token_limit(logits_fn.config, rows[-1], 1)
        except UserError as error:
            where = f"prompt {number}: " if len(prompts) > 1 else ""
            raise UserError(f"{where}{error.message}", hint=error.hint) from None
    return rows


def generate_completions(
    logits_fn: LogitsFn,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    options: GenerateOptions,
    batch_size: int,
    on_text: Callable[[str], None],
) -> Iterator[tuple[int, Completion]]:
    """(number of the sample, completion) for each of the `num_samples` of each prompt, in batches of `batch_size` rows."""
    stop_ids = frozenset({tokenizer.eos_id(), *options.stop_id} - {-1})
    if options.beams > 1:
        length_penalty = 1.0 if options.length_penalty is None else options.length_penalty
        prompts_per_batch = max(1, batch_size // options.beams)
        for start in range(0, len(prompts), prompts_per_batch):
            batch_completions = complete_by_beams(
                logits_fn,
                tokenizer,
                prompts[start : start + prompts_per_batch],
                beams=options.beams,
                max_new_tokens=options.max_new_tokens,
                stop_ids=stop_ids,
                length_penalty=length_penalty,
            )
            for completions in batch_completions:
                yield from enumerate(completions[: options.num_samples])
        return
    temperature = DEFAULT_TEMPERATURE if options.temperature is None else options.temperature
    top_p = 1.0 if options.top_p is None else options.top_p
    sampling = Sampling(0.0 if options.greedy else temperature, options.top_k or 0, top_p)
    rows = [(prompt, sample) for prompt in prompts for sample in range(options.num_samples)]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        # The seed depends on the sample only, so that a text does not depend on the other prompts.
        sampler = seeded_sampler(sampling, [(options.seed or 0) + sample for _, sample in batch])
        completions = complete(
            logits_fn,
            tokenizer,
            [prompt for prompt, _ in batch],
            sampler,
            max_new_tokens=options.max_new_tokens,
            stop_ids=stop_ids,
            stop_texts=options.stop,
            on_text=on_text,
        )
        yield from zip((sample for _, sample in batch), completions, strict=True)
