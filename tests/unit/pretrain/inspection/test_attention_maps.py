import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from pretrain.errors import DataError, UserError
from pretrain.inspection.attention_maps import attention_maps, capture_attention, head_stats
from pretrain.inspection.token_labels import escape_invisible, token_labels
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import decoder_of, memory_source, small_model
from tokenizer.models.open_tokenizer import load_tokenizer

MODELS: list[dict[str, Any]] = [
    {},
    {"attention": "reference", "n_kv_heads": 4},
    {"qk_norm": "head", "rope_fraction": 0.5, "attention_bias": "qkv"},
    {"qk_norm": "full", "norm_position": "post"},
    {"positions": "learned", "norm": "layernorm", "norm_bias": True, "attention_bias": "all", "ffn": "gelu"},
    {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_seq_len": 64},
]
TOKENS_1T = torch.randint(1_009, (1, 48), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_the_weights_give_the_output_of_the_model_s_attention(changes: dict[str, Any]) -> None:
    decoder = decoder_of(memory_source(None, small_model(**changes)))
    outputs: list[tuple[Tensor, Tensor]] = []

    def after(attention: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        outputs.append((attention.queries_keys_values(*arguments[:2])[2], output))  # type: ignore[operator]

    for block in decoder.blocks:
        block.attention.register_forward_hook(after)
    weights_LHTT = capture_attention(decoder, TOKENS_1T)
    assert weights_LHTT.shape == (2, 4, 48, 48) and weights_LHTT.dtype == torch.float32
    for block, weights_HTT, (v_1KTC, output_1TD) in zip(decoder.blocks, weights_LHTT, outputs, strict=True):
        v_HTC = v_1KTC[0].repeat_interleave(4 // v_1KTC.shape[1], dim=0)
        mixed_TE = (weights_HTT @ v_HTC).transpose(0, 1).flatten(-2)
        torch.testing.assert_close(block.attention.output(mixed_TE), output_1TD[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights_LHTT.sum(-1), torch.ones(2, 4, 48), atol=1e-6, rtol=0)
    assert not weights_LHTT.triu(1).any() and (weights_LHTT >= 0).all()
    # Heads differ, or the test could not tell one from another.
    assert len({weights.numpy().tobytes() for weights in weights_LHTT.flatten(0, 1)}) == 8


def test_looking_leaves_nothing_behind() -> None:
    decoder = decoder_of(memory_source(None))
    before = decoder(TOKENS_1T)
    capture_attention(decoder, TOKENS_1T)
    assert not any(module._forward_pre_hooks for module in decoder.modules())
    assert torch.equal(before, decoder(TOKENS_1T))
    with pytest.raises(IndexError):
        capture_attention(decoder, TOKENS_1T + 10_000)
    assert not any(module._forward_pre_hooks for module in decoder.modules())


def test_figures_of_heads_that_are_known() -> None:
    count = 9
    first, previous = torch.zeros(count, count), torch.zeros(count, count)
    first[:, 0] = 1
    previous[0, 0] = 1
    previous += torch.ones(count - 1).diag(-1)
    even = torch.ones(count, count).tril() / torch.arange(1, count + 1)[:, None]
    assert head_stats(first) == (0.0, 1.0, pytest.approx(1 / 8))
    assert head_stats(previous) == (0.0, pytest.approx(1 / 8), 1.0)
    assert head_stats(torch.eye(count)) == (0.0, 0.0, 0.0)
    rows = range(2, count + 1)
    expected = sum(torch.log2(torch.tensor(float(n))).item() for n in rows) / 8
    assert head_stats(even) == pytest.approx((expected, sum(1 / n for n in rows) / 8, sum(1 / n for n in rows) / 8))
    assert all(value != value for value in head_stats(torch.ones(1, 1)))


def test_a_text_is_read_as_a_document_begins(sentencepiece_model: Path) -> None:
    source = memory_source(sentencepiece_model)
    maps = attention_maps(source, "def f(x):\n    return x", 64)
    assert maps.tokens[0] == "<s>" and "".join(maps.tokens[1:]) == "def␣f(x):\\n␣␣␣␣return␣x"
    assert maps.step == 7 and maps.left_out == 0
    ids = [1, *load_tokenizer(sentencepiece_model).encode("def f(x):\n    return x")]
    assert torch.equal(maps.weights_LHTT, capture_attention(decoder_of(source), torch.tensor([ids])))


def test_what_is_beyond_the_limit_is_left_out_and_counted(sentencepiece_model: Path) -> None:
    source = memory_source(sentencepiece_model)
    whole = attention_maps(source, "import os\n" * 5, 64)
    cut = attention_maps(source, "import os\n" * 5, 4)
    assert cut.tokens == whole.tokens[:4] and cut.left_out == len(whole.tokens) - 4
    torch.testing.assert_close(cut.weights_LHTT, whole.weights_LHTT[:, :, :4, :4], atol=1e-6, rtol=0)
    # Learned positions end at max_seq_len.
    short = memory_source(sentencepiece_model, small_model(positions="learned", max_seq_len=5))
    assert len(attention_maps(short, "import os\n" * 5, 64).tokens) == 5


def test_an_empty_text_is_the_token_that_begins_it(sentencepiece_model: Path) -> None:
    maps = attention_maps(memory_source(sentencepiece_model), "", 64)
    assert maps.tokens == ("<s>",) and maps.weights_LHTT.eq(1).all()


def test_what_cannot_be_shown_is_refused(sentencepiece_model: Path) -> None:
    with pytest.raises(UserError, match="without a tokenizer"):
        attention_maps(memory_source(None), "a", 64)
    with pytest.raises(UserError, match="not valid UTF-8 from character 2 on"):
        attention_maps(memory_source(sentencepiece_model), "ab\udcff", 64)
    small = memory_source(sentencepiece_model, small_model(vocab_size=20))
    with pytest.raises(DataError, match=r"gives the id \d+; the embedding has 20 rows"):
        attention_maps(small, "import", 64)
    broken = memory_source(sentencepiece_model)
    broken.tensors["blocks.1.attention.key.weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match="attention of layer 1 of step 7 is not finite"):
        attention_maps(broken, "import os", 64)


def test_spaces_bytes_and_what_does_not_print_are_seen(sentencepiece_model: Path) -> None:
    codec = load_tokenizer(sentencepiece_model)
    shown = token_labels(codec, codec.encode("a  b\n\t漢\u202e"))
    text = "".join(shown)
    assert "␣␣" in text and "\\n" in text and "<0xE6><0xBC><0xA2>" in text and "\u202e" not in text
    assert escape_invisible("\u202e\x1b\u00a0") == "\\u202e\\x1b\\xa0"


def test_tokens_of_a_byte_level_vocabulary_are_text_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    codec = load_tokenizer(tmp_path / "tokenizer.json")
    shown = token_labels(codec, [*codec.encode("the cat é漢\n"), codec.eos_id()])
    assert shown[-1] == "<|end|>" and shown[-2] == "\\n"
    assert "".join(shown[:-2]) == "the␣cat␣<0xC3><0xA9><0xE6><0xBC><0xA2>"
