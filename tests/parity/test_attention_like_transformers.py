"""The weights that `inspect attention` shows are those that transformers reports for the exported model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrain.convert.export_hf import export_hf
from pretrain.convert.weight_sources import open_weights
from pretrain.inspection.attention_maps import attention_maps, capture_attention
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import decoder_of, memory_source, small_model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": "head", "norm_eps": 1e-6},
        {"qk_norm": "full", "norm_position": "post", "norm_eps": 1e-6, "n_kv_heads": 4},
    ],
    ids=["llama", "qwen3", "olmo2"],
)
def test_each_head_looks_where_transformers_says(
    changes: dict[str, Any], sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = memory_source(sentencepiece_model, small_model(**changes))
    export_hf(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens_1T = torch.randint(1_009, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = torch.stack(model(tokens_1T, output_attentions=True).attentions)[:, 0]
    torch.testing.assert_close(capture_attention(decoder_of(source), tokens_1T), theirs, atol=1e-6, rtol=0)
    # A directory is as good as a run.
    text = "def read(path):\n    return open(path)"
    from_directory = attention_maps(open_weights(tmp_path / "out"), text, 64)
    assert torch.equal(from_directory.weights_LHTT, attention_maps(source, text, 64).weights_LHTT)
    assert from_directory.tokens[0] == "<s>"
