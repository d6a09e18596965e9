"""Options of `pretrain generate`, and the combinations that are refused."""

import math
from typing import NamedTuple

from pretrain.errors import UserError


class GenerateOptions(NamedTuple):
    """Generation options. None means not given."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    greedy: bool
    seed: int | None
    num_samples: int
    beams: int
    length_penalty: float | None
    stop: tuple[str, ...]
    stop_id: tuple[int, ...]


def check_options(options: GenerateOptions) -> None:
    """Raise UserError if an option has no effect or contradicts another."""
    # click's FloatRange accepts NaN.
    for name, number in (
        ("--temperature", options.temperature),
        ("--top-p", options.top_p),
        ("--length-penalty", options.length_penalty),
    ):
        if number is not None and not math.isfinite(number):
            raise UserError(f"{name} {number} is not a finite number")
    sampling = {"--temperature": options.temperature, "--top-k": options.top_k, "--top-p": options.top_p}
    given = [name for name, value in {**sampling, "--seed": options.seed}.items() if value is not None]
    if options.beams > 1:
        given += [name for name, value in (("--greedy", options.greedy), ("--stop", options.stop)) if value]
        if given:
            raise UserError(
                f"--beams {options.beams} with {', '.join(given)}: beam search does not sample and stops only at tokens",
                hint=f"leave out {' or '.join(('--beams', *given))}",
            )
        if options.num_samples > options.beams:
            raise UserError(
                f"--num-samples {options.num_samples} is above --beams {options.beams}, the number of texts found",
                hint=f"--beams {options.num_samples}",
            )
        return
    if options.length_penalty is not None:
        raise UserError(f"--length-penalty {options.length_penalty:g} has no effect without --beams", hint="--beams 4")
    if options.greedy and options.temperature:
        raise UserError(f"--greedy contradicts --temperature {options.temperature:g}", hint="leave out one of them")
    unused = [name for name in given if name != "--temperature"]
    if unused and (options.greedy or options.temperature == 0):
        raise UserError(
            f"{', '.join(unused)}: no effect on greedy decoding",
            hint=f"leave out {' and '.join(unused)}, or --temperature 0.8",
        )
    if options.num_samples > 1 and (options.greedy or options.temperature == 0):
        raise UserError(
            f"--num-samples {options.num_samples}: greedy decoding gives the same text each time",
            hint="--temperature 0.8",
        )
    if "" in options.stop:
        raise UserError("--stop is empty: every text would end at once", hint="leave it out")
