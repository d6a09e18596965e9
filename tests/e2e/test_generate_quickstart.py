"""What the quickstart trained writes: the same, token for token, as transformers on what it exported."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrain.convert.weight_sources import load_decoder, open_weights
from pretrain.generation.completion import complete, complete_by_beams
from pretrain.generation.prompts import encode_prompt
from pretrain.generation.sampling import greedy
from pretrain.model.logits_fn import decoder_logits
from tokenizer.models.open_tokenizer import load_tokenizer

TEXTS = ["class Path", "def f(x):\n    return", "import os\nimport sys\n\n", "", "# 漢字 😀\n"]
PAD = 3


@pytest.fixture(scope="module")
def theirs(workplace: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(workplace / "quickstart/export", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(workplace: Path) -> list[list[int]]:
    codec = load_tokenizer(workplace / "quickstart/export/tokenizer.model")
    return [encode_prompt(codec, text) for text in TEXTS]


@pytest.fixture(scope="module")
def greedy_ids(theirs: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    """64 tokens behind each prompt, made alone; and the same in a batch with filling on the left."""
    longest = max(map(len, prompts))
    alone = [likeliest(theirs, torch.tensor([prompt]))[0] for prompt in prompts]
    together = likeliest(theirs, torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]))
    assert alone == together
    return alone


def likeliest(theirs: torch.nn.Module, ids: torch.Tensor) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": PAD}
    return theirs.generate(ids, attention_mask=ids.ne(PAD).long(), **options)[:, -64:].tolist()


@pytest.mark.parametrize("name", ["run", "export"])
def test_greedy_writes_the_64_tokens_of_transformers(
    name: str, workplace: Path, prompts: list[list[int]], greedy_ids: list[list[int]]
) -> None:
    """From the run and from the directory; alone and in a batch."""
    source = open_weights(workplace / "quickstart" / name)
    assert source.tokenizer is not None
    codec, reader = load_tokenizer(source.tokenizer), decoder_logits(load_decoder(source))
    ours = complete(reader, codec, prompts, greedy, max_new_tokens=64, stop_ids=frozenset())
    assert [made.tokens for made in ours] == greedy_ids
    for prompt, made in zip(prompts, ours, strict=True):
        assert complete(reader, codec, [prompt], greedy, max_new_tokens=64, stop_ids=frozenset()) == [made]


def test_beams_find_what_transformers_finds(workplace: Path, theirs: torch.nn.Module, prompts: list[list[int]]) -> None:
    source = open_weights(workplace / "quickstart/run")
    assert source.tokenizer is not None
    codec, reader = load_tokenizer(source.tokenizer), decoder_logits(load_decoder(source))
    ours = complete_by_beams(reader, codec, prompts, beams=3, max_new_tokens=24, stop_ids=frozenset({codec.eos_id()}))
    for prompt, best in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=24,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for made, sequence, score in zip(best, found.sequences, found.sequences_scores, strict=True):
            assert made.tokens == sequence[len(prompt) :][: len(made.tokens)].tolist()
            assert made.score == pytest.approx(float(score), abs=1e-5)
