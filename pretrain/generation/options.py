"""What a person asks `pretrain generate` for, and what contradicts itself."""

import math
from typing import NamedTuple

from pretrain.errors import UserError


class GenerateOptions(NamedTuple):
    """The options that say how a text goes on. None is what was not given."""

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


def refuse_contradictions(wishes: GenerateOptions) -> None:
    """Raise UserError for options that would have no effect, or none together."""
    # Ranges of the command line let NaN through.
    for name, number in (
        ("--temperature", wishes.temperature),
        ("--top-p", wishes.top_p),
        ("--length-penalty", wishes.length_penalty),
    ):
        if number is not None and not math.isfinite(number):
            raise UserError(f"{name} {number} is not a finite number")
    sampled = {"--temperature": wishes.temperature, "--top-k": wishes.top_k, "--top-p": wishes.top_p}
    given = [name for name, value in {**sampled, "--seed": wishes.seed}.items() if value is not None]
    if wishes.beams > 1:
        given += [name for name, value in (("--greedy", wishes.greedy), ("--stop", wishes.stop)) if value]
        if given:
            raise UserError(
                f"--beams {wishes.beams} with {', '.join(given)}: a beam search draws nothing, and ends at tokens only",
                hint=f"leave out {' or '.join(('--beams', *given))}",
            )
        if wishes.num_samples > wishes.beams:
            raise UserError(
                f"--num-samples {wishes.num_samples} is above --beams {wishes.beams}, which finds no more texts",
                hint=f"--beams {wishes.num_samples}",
            )
        return
    if wishes.length_penalty is not None:
        raise UserError(f"--length-penalty {wishes.length_penalty:g} has no meaning without --beams", hint="--beams 4")
    if wishes.greedy and wishes.temperature:
        raise UserError(f"--greedy and --temperature {wishes.temperature:g} contradict each other")
    idle = [name for name in given if name != "--temperature"]
    if idle and (wishes.greedy or wishes.temperature == 0):
        raise UserError(
            f"{', '.join(idle)}: greedy draws nothing", hint=f"leave out {' and '.join(idle)}, or --temperature 0.8"
        )
    if wishes.num_samples > 1 and (wishes.greedy or wishes.temperature == 0):
        raise UserError(
            f"--num-samples {wishes.num_samples}: greedy makes the same text each time", hint="--temperature 0.8"
        )
    if "" in wishes.stop:
        raise UserError("--stop is empty, and every text begins with that")
