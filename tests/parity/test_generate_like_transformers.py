"""Greedy and beam search on exported directories: the same tokens, and the same scores, as `generate` of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.convert.export_hf import export_hf
from pretrain.convert.verify.transformers_library import quiet_transformers
from pretrain.generation.beam import beam_search
from pretrain.generation.decode_loop import generate
from pretrain.generation.sampling import greedy
from pretrain.model.logits_fn import LogitsFn, decoder_logits
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import decoder_of, memory_source, small_model
from tokenizer.models.open_tokenizer import load_tokenizer

LAYERNORM = {"norm": "layernorm", "norm_bias": True, "ffn": "gelu_tanh", "ffn_bias": True, "attention_bias": "all"}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, biased, one key head": {"tie_embeddings": True, "n_kv_heads": 1, "attention_bias": "all"},
    "llama, llama3": {"rope_scaling": "llama3", "rope_factor": 2.0, "rope_original_seq_len": 64},
    "llama, linear": {"rope_scaling": "linear", "rope_factor": 2.0},
    "llama, yarn": {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_seq_len": 64},
    "qwen3": {"qk_norm": "head", "head_dim": 24},
    "olmo2": {"qk_norm": "full", "norm_position": "post"},
    "gpt2": {**LAYERNORM, "positions": "learned", "n_kv_heads": 4, "tie_embeddings": True},
    "gpt2, sinusoidal": {**LAYERNORM, "positions": "sinusoidal", "n_kv_heads": 4, "tie_embeddings": True},
    "starcoder2": LAYERNORM,
    "stablelm": {"norm": "layernorm", "norm_bias": True, "attention_bias": "qkv", "rope_fraction": 0.5},
}
TEXTS = ["def f(x):\n    return", "", "import os\nimport sys\nclass Path(os.PathLike):\n    def", "é漢"]


class Pair:
    """Our decoder and transformers' model of the directory that was exported from it."""

    def __init__(self, shape: dict[str, Any], tokenizer: Path, folder: Path) -> None:
        # Weights so large that each token's logits are far apart, and last bits decide nothing.
        source = memory_source(tokenizer, small_model(init_std=0.2, **shape), seq_len=128)
        export_hf(source, folder / "out")
        with quiet_transformers() as transformers:
            self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32).eval()
        self.reader: LogitsFn = decoder_logits(decoder_of(source))
        codec = load_tokenizer(tokenizer)
        self.prompts = [[codec.bos_id(), *codec.encode(text)] for text in TEXTS]

    def generate(self, prompts: list[list[int]], **options: Any) -> Any:
        """transformers' generate, padded on the left; ids are made behind the longest prompt."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[3] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"do_sample": False, "pad_token_id": 3, "return_dict_in_generate": True, **options}
        return self.theirs.generate(ids, attention_mask=mask, **options)


# Variants of a family above; logits of each are compared by the tests of exports.
VARIANTS = ("llama, linear", "llama, yarn", "gpt2, sinusoidal")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(shape, id=name, marks=pytest.mark.slow if name in VARIANTS else ())
        for name, shape in FAMILIES.items()
    ],
)
def pair(request: pytest.FixtureRequest, sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, sentencepiece_model, tmp_path_factory.mktemp("pair"))


def greedy_ids(reader: LogitsFn, prompts: list[list[int]], count: int) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in prompts]

    def take(row: int, token: int) -> bool:
        made[row].append(token)
        return True

    generate(reader, prompts, greedy, take, max_new_tokens=count)
    return made


def test_greedy_makes_the_same_64_tokens_alone_and_in_a_batch(pair: Pair) -> None:
    together = pair.generate(pair.prompts, max_new_tokens=64, eos_token_id=None).sequences[:, -64:].tolist()
    alone = [
        pair.generate([prompt], max_new_tokens=64, eos_token_id=None).sequences[0, -64:].tolist()
        for prompt in pair.prompts
    ]
    assert greedy_ids(pair.reader, pair.prompts, 64) == together == alone
    assert [greedy_ids(pair.reader, [prompt], 64)[0] for prompt in pair.prompts] == alone


def stop_tokens(pair: Pair) -> list[int]:
    """Such as searches meet, so that beams end: each prompt's own, and at different lengths."""
    found = beam_search(pair.reader, pair.prompts, beams=5, max_new_tokens=12, stop_ids=frozenset())
    return sorted({token for best in found for kept in best for token in kept.tokens[3::4]})


@pytest.mark.parametrize(
    ("beams", "length_penalty", "early_stopping"),
    [(2, 1.0, True), (4, 1.0, False), (5, 2.0, "never"), (3, 0.0, True), (3, 0.0, False), (4, -1.0, "never")],
)
def test_beams_find_the_same_texts_with_the_same_scores(
    pair: Pair, beams: int, length_penalty: float, early_stopping: Any
) -> None:
    stops, longest = stop_tokens(pair), max(map(len, pair.prompts))
    options: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    theirs = pair.generate(
        pair.prompts,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=12,
        eos_token_id=stops,
        output_scores=True,
        **options,
    )
    ours = beam_search(pair.reader, pair.prompts, beams=beams, max_new_tokens=12, stop_ids=frozenset(stops), **options)
    flat = [found for kept in ours for found in kept]
    assert [len(kept) for kept in ours] == [beams] * len(pair.prompts)
    for found, ids in zip(flat, theirs.sequences[:, longest:].tolist(), strict=True):
        assert found.tokens == ids[: len(found.tokens)]
        assert set(ids[len(found.tokens) :]) <= {3}
    scores = torch.tensor([found.score for found in flat])
    torch.testing.assert_close(scores, theirs.sequences_scores, rtol=1e-5, atol=1e-5)


def test_stop_tokens_do_occur_in_these_searches(pair: Pair) -> None:
    """Or the test above would say nothing about them."""
    stops = frozenset(stop_tokens(pair))
    for beams in (2, 5):
        found = beam_search(pair.reader, pair.prompts, beams=beams, max_new_tokens=12, stop_ids=stops)
        ended = [len(kept.tokens) for best in found for kept in best if kept.tokens[-1] in stops]
        assert len(ended) >= beams
        assert len(set(ended)) > 1


def test_one_stop_token_ends_beams_as_the_end_of_a_document_does(pair: Pair) -> None:
    stop = stop_tokens(pair)[0]
    theirs = pair.generate(
        pair.prompts[:1], num_beams=3, num_return_sequences=3, max_new_tokens=10, eos_token_id=stop, output_scores=True
    )
    (ours,) = beam_search(pair.reader, pair.prompts[:1], beams=3, max_new_tokens=10, stop_ids=frozenset({stop}))
    begin = len(pair.prompts[0])
    assert [found.tokens for found in ours] == [
        ids[begin : begin + len(found.tokens)].tolist() for found, ids in zip(ours, theirs.sequences, strict=True)
    ]
    assert [found.score for found in ours] == pytest.approx(theirs.sequences_scores.tolist(), rel=1e-5)
