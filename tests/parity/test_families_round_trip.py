"""Each family: export, the same logits and the same greedy text in transformers, import, export again: the same files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from pretrain.convert.export_hf import export_hf
from pretrain.convert.families.choose import choose_family
from pretrain.convert.import_hf import import_hf
from pretrain.convert.weight_sources import load_decoder, open_weights
from pretrain.model.decoder import Decoder
from tests.support.exportable_models import FULLEST, HELD, IDS
from tests.support.json_tokenizers import gpt2, llama3, qwen
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import MemorySource, decoder_of, memory_source, small_model

# What tells of the run behind the weights, and not of the weights: steps, data, the configuration, the curve.
OF_THE_RUN = {"README.md", "pretrain_config.yaml", "training-curve.svg"}
# One of each family with the suite, and the one whose positions are made for the file.
USUAL = [*FULLEST.values(), HELD["gpt2", "sinusoids, some biases"]]
CASES = [
    pytest.param(held, changes, id=name, marks=[] if changes in USUAL else [pytest.mark.slow])
    for name, (held, changes) in zip(IDS, HELD.items(), strict=True)
]


def source_of(changes: dict[str, Any], tokenizer: Path) -> MemorySource:
    """Weights so large that tokens follow each other in no simple way; the length of training is the model's whole."""
    return memory_source(tokenizer, small_model(init_std=0.3, **changes), seq_len=128)


def greedy(model: Decoder, prompt_T: Tensor, count: int) -> list[int]:
    ids = prompt_T[None]
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(prompt_T) :].tolist()


@pytest.mark.parametrize(("held", "changes"), CASES)
def test_export_equals_transformers_and_comes_back_as_the_same_files(
    held: tuple[str, str], changes: dict[str, Any], sentencepiece_model: Path, tmp_path: Path
) -> None:
    if held == ("olmo2", "yarn") and transformers.__version__ < "5":
        pytest.skip("transformers 4 refuses such a config.json of OLMo 2")
    source = source_of(changes, sentencepiece_model)
    report = export_hf(source, tmp_path / "first")
    assert choose_family(source.config.model).model_type == held[0]
    assert report.logits.max_abs_difference <= 1e-5
    assert report.logits.positions == 2 * 128

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "first").eval()
    prompt_T = torch.arange(20, 28)
    made = theirs.generate(
        prompt_T[None],
        attention_mask=torch.ones(1, 8, dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 8:].tolist()
    assert made == greedy(decoder_of(source), prompt_T, 64)
    assert len(set(made)) > 4  # not one token for ever, on which any two models agree

    import_hf(tmp_path / "first", tmp_path / "run")
    back = open_weights(tmp_path / "run")
    assert made == greedy(load_decoder(back), prompt_T, 64)
    export_hf(back, tmp_path / "second")
    first, second = ({file.name for file in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first - OF_THE_RUN == second - OF_THE_RUN
    for name in sorted(first - OF_THE_RUN):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize("changes", [FULLEST["llama"], HELD["gpt2", "sinusoids, some biases"]], ids=["llama", "gpt2"])
def test_in_bf16_the_round_trip_is_exact_too(
    changes: dict[str, Any], sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = source_of(changes, sentencepiece_model)
    report = export_hf(source, tmp_path / "first", dtype="bf16", max_shard_bytes=100_000)
    assert report.logits.max_abs_difference <= report.logits.bound
    # A directory is a source as it is: nothing of the run is between the two.
    export_hf(open_weights(tmp_path / "first"), tmp_path / "second", dtype="bf16", max_shard_bytes=100_000)
    for file in sorted((tmp_path / "first").iterdir()):
        if file.name not in OF_THE_RUN:
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("make", "family"),
    [(gpt2, "gpt2"), (llama3, "llama"), (qwen, "qwen3")],
    ids=["gpt2", "llama3", "qwen"],
)
def test_a_tokenizer_json_comes_back_as_it_was(make: Callable[[Path], Path], family: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    tokenizer = make(tmp_path / "tokenizer")
    source = memory_source(tokenizer, small_model(**(FULLEST[family] | {"vocab_size": 1_024})), seq_len=128)
    report = export_hf(source, tmp_path / "first")
    assert report.tokenizer.reference == "tokenizers"
    assert import_hf(tmp_path / "first", tmp_path / "run").tokenizer.name == "tokenizer.json"
    export_hf(open_weights(tmp_path / "run"), tmp_path / "second")
    for file in sorted((tmp_path / "first").iterdir()):
        if file.name not in OF_THE_RUN:
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
    assert (tmp_path / "first" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
