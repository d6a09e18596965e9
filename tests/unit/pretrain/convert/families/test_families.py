"""The declarations of the families: names, config.json in both generations, and who holds what."""

import json
from collections import Counter
from typing import Any

import pytest

from pretrain.config.check import find_conflicts
from pretrain.config.schema import Config, DataConfig, ModelConfig
from pretrain.convert.families.choose import FAMILIES, choose_family, config_json, read_config
from pretrain.convert.families.llama_table import LLAMA
from pretrain.convert.files.weight_files import expected_shapes
from pretrain.errors import DataError, UserError
from tests.support.exportable_models import HELD, IDS
from tests.support.weight_source import small_model

MODEL = ModelConfig(vocab_size=11, n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_ff=12, rope_theta=123_456.0)
IDS_OF_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def test_llama_has_its_own_name_for_every_parameter() -> None:
    assert [tensor.name for tensor in LLAMA.tensors(MODEL)] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]


@pytest.mark.parametrize(("held", "changes"), HELD.items(), ids=IDS)
def test_the_family_that_holds_a_model_has_each_of_its_parameters_once(
    held: tuple[str, str], changes: dict[str, Any]
) -> None:
    model = small_model(n_layers=11, **changes)
    assert not find_conflicts(Config(model=model, data=DataConfig(seq_len=96)))
    family = choose_family(model)
    assert family.model_type == held[0]
    table = family.tensors(model)
    assert Counter(name for tensor in table for name in tensor.sources) == Counter(expected_shapes(model).keys())
    assert max(Counter(tensor.name for tensor in table).values()) == 1
    assert any(".10." in tensor.name for tensor in table)  # no block's number is taken for another's
    assert all((tensor.fill is None) == bool(tensor.sources) for tensor in table)


@pytest.mark.parametrize(("held", "changes"), HELD.items(), ids=IDS)
@pytest.mark.parametrize("generation", ["both", "transformers 4", "transformers 5"])
def test_what_is_read_back_computes_the_same_and_is_written_as_the_same(
    generation: str, held: tuple[str, str], changes: dict[str, Any]
) -> None:
    model = small_model(**changes)
    family = choose_family(model)
    written = config_json(family, model, 128, "float32", IDS_OF_TOKENS)
    values = json.loads(json.dumps(written))
    if generation == "transformers 4":
        for key in ("rope_parameters", "dtype"):
            values.pop(key, None)
    elif generation == "transformers 5":
        for key in ("rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype"):
            values.pop(key, None)
    found, config, notes = read_config(values, "config.json")
    assert (found, notes) == (family, [])
    assert config_json(family, config.model, 128, "float32", IDS_OF_TOKENS) == written
    # Biases that were zeros have become parameters, and a table of sinusoids has; nothing else is another.
    grown = {"norm_bias", "attention_bias", "ffn_bias", "positions", "max_seq_len"}
    same = {key: value for key, value in vars(config.model).items() if key not in grown}
    assert same == {key: value for key, value in vars(model).items() if key not in grown}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "learned positions beside RMSNorm": ({"positions": "learned"}, r"llama\n.*positions=learned: Llama has rope only"),
    "ReLU beside RMSNorm": ({"ffn": "relu"}, r"model\.ffn=relu: Llama has swiglu only"),
    "part of each head, RMSNorm": ({"rope_fraction": 0.5}, r"rope_fraction=0\.5: Llama rotates all channels of a head"),
    "post-norm without norms of queries": ({"norm_position": "post"}, r"qk_norm=none: OLMo 2 has full only"),
    "norms of queries of LayerNorm": (
        {"norm": "layernorm", "qk_norm": "head"},
        r"qk_norm=head: StableLM has none only",
    ),
    "gpt2 with fewer key heads": (
        {"norm": "layernorm", "positions": "learned", "ffn": "gelu"},
        r"n_kv_heads=2: GPT-2 has as many as n_heads=4 only",
    ),
    "gpt2 with wide heads": (
        {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "n_kv_heads": 4, "head_dim": 24},
        r"head_dim=24: GPT-2 has d_model / n_heads = 64/4 only",
    ),
    "biases of attention beside SwiGLU and LayerNorm": (
        {"norm": "layernorm", "attention_bias": "all"},
        r"attention_bias=all: StableLM has none or qkv only",
    ),
    "qwen3 with biases of the feed-forward": (
        {"qk_norm": "head", "ffn_bias": True},
        r"ffn_bias=true: Qwen3 has false only",
    ),
    "a width that the heads don't divide": ({"n_heads": 6, "n_kv_heads": 2, "head_dim": 8}, r"multiple of n_heads=6"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_none_holds_is_refused_with_what_is_in_the_way_of_the_nearest(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_family(small_model(**changes))


def test_all_incompatibilities_with_a_family_come_at_once() -> None:
    model = small_model(positions="learned", norm="layernorm", ffn="relu")
    assert len(LLAMA.incompatibilities(model)) == 3


def read(**changes: Any) -> tuple[Any, ...]:
    """Llama's config.json with changes; None takes a key away."""
    values = config_json(LLAMA, small_model(), 128, "float32", IDS_OF_TOKENS) | changes
    return read_config({key: value for key, value in values.items() if value is not None}, "DIR/config.json")


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu': the decoder's gated"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "own code": ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
    "another head": ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    "rope by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one rotation for all layers"),
    "two thetas": ({"rope_theta": 5e5}, r"rope_theta is 500000\.0 in one place, 10000\.0 in another"),
    "a key of another type": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "long_factor": [1.0]}},
        "long_factor",
    ),
    "no factor": ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor is missing"),
    "partial": ({"partial_rotary_factor": 0.5}, "rotates all channels"),
    "attention factor of yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
        "attention_factor",
    ),
    "no width": ({"hidden_size": None}, "hidden_size is missing"),
    "a text for a number": ({"num_hidden_layers": "2"}, "num_hidden_layers='2' is not an integer from 1 to"),
    "a size that no tensor has": ({"vocab_size": 10**20}, r"vocab_size=1000.* is not an integer from 1 to"),
    "a list for a name": ({"rope_parameters": {"rope_type": ["linear"]}}, r"rope_type=\['linear'\]: the decoder has"),
    "none at all": ({"num_attention_heads": 0}, "num_attention_heads=0"),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not a number"),
    "not true or false": ({"mlp_bias": 1}, "mlp_bias=1 is not true or false"),
    "a rule of our own": ({"num_key_value_heads": 3}, r"n_heads=4 is not a multiple of model\.n_kv_heads=3"),
}


@pytest.mark.parametrize(("changes", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_the_decoder_cannot_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**changes)


def test_all_problems_of_a_config_json_come_at_once() -> None:
    with pytest.raises(DataError) as caught:
        read(hidden_act="relu", quantization_config={}, rope_scaling={"type": "longrope"})
    assert all(
        part in str(caught.value) for part in ("hidden_act", "quantization_config", "longrope", "DIR/config.json")
    )


@pytest.mark.parametrize("kind", ["mixtral", None, ["llama"], 3])
def test_another_architecture_is_refused_with_those_that_can_be_imported(kind: Any) -> None:
    with pytest.raises(DataError, match="model_type=") as caught:
        read_config({"model_type": kind}, "config.json")
    assert all(family.model_type in str(caught.value) for family in FAMILIES)


def test_keys_that_are_missing_are_what_transformers_takes() -> None:
    keys = (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "num_key_value_heads",
        "rms_norm_eps",
        "mlp_bias",
    )
    model = read(**dict.fromkeys((*keys, "attention_bias", "tie_word_embeddings", "hidden_act", "architectures")))[
        1
    ].model
    assert (model.rope_theta, model.n_kv_heads, model.norm_eps, model.tie_embeddings) == (10_000.0, 4, 1e-6, False)


def test_the_original_context_is_that_of_the_file_where_none_is_named() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
    model = read(rope_parameters=rope, rope_scaling=None)[1].model
    assert (model.rope_original_seq_len, model.rope_beta_fast, model.rope_beta_slow) == (128, 32.0, 1.0)


def test_gelu_new_is_read_and_said_to_differ_in_the_last_bits() -> None:
    gpt2 = next(family for family in FAMILIES if family.model_type == "gpt2")
    model = small_model(norm="layernorm", positions="learned", n_kv_heads=4, ffn="gelu_tanh")
    values = config_json(gpt2, model, 128, "float32", IDS_OF_TOKENS) | {"activation_function": "gelu_new"}
    _, config, notes = read_config(values, "config.json")
    assert config.model.ffn == "gelu_tanh"
    assert "gelu_new" in notes[0] and "last bits" in notes[0]


def test_a_context_shorter_than_the_one_that_it_was_stretched_from_is_read() -> None:
    """As an export of a short training writes it: the model is made for the longer one, and the file claims the shorter."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 512}
    config = read(rope_parameters=rope, rope_scaling=None)[1]
    assert (config.model.max_seq_len, config.model.rope_original_seq_len, config.data.seq_len) == (512, 512, 128)
