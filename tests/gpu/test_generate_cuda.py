"""Generation on a GPU: the tokens of the CPU, in a batch and by beams."""

import pytest
import torch

from pretrain.generation.beam import beam_search
from pretrain.generation.decode_loop import generate
from pretrain.generation.sampling import Sampler, Sampling, greedy, seeded_sampler
from pretrain.model.logits_fn import LogitsFn, decoder_logits
from tests.support.shapes import SHAPES, small_decoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


def run(reader: LogitsFn, choose: Sampler = greedy) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in PROMPTS]

    def take(row: int, token: int) -> bool:
        made[row].append(token)
        return True

    generate(reader, PROMPTS, choose, take, max_new_tokens=20)
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_and_beams_find_what_the_cpu_finds(shape: dict) -> None:
    cpu, cuda = decoder_logits(small_decoder(**shape)), decoder_logits(small_decoder(**shape).cuda())
    assert run(cuda) == run(cpu)
    options = {"beams": 3, "max_new_tokens": 10, "stop_ids": frozenset({7, 8, 9})}
    for here, there in zip(beam_search(cpu, PROMPTS, **options), beam_search(cuda, PROMPTS, **options), strict=True):
        assert [found.tokens for found in here] == [found.tokens for found in there]
        assert [found.score for found in here] == pytest.approx([found.score for found in there], abs=1e-4)


def test_a_seed_draws_alike_on_both() -> None:
    cpu, cuda = decoder_logits(small_decoder()), decoder_logits(small_decoder().cuda())
    assert run(cuda, seeded_sampler(Sampling(1.0), [1, 2, 3])) == run(cpu, seeded_sampler(Sampling(1.0), [1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_with_filling_and_without(dtype: torch.dtype) -> None:
    reader = decoder_logits(small_decoder().to("cuda", dtype))
    assert [len(made) for made in run(reader)] == [20, 20, 17]
