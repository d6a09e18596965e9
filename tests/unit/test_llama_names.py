import pytest

from pretrain.config.schema import ModelConfig
from pretrain.convert.llama import llama_config, llama_name, reasons_against_llama, refuse_unless_llama
from pretrain.convert.tokenizer_json import SpecialTokens
from pretrain.convert.weights import expected_shapes
from pretrain.errors import UserError

TOKENS = SpecialTokens(unk=(0, "<unk>"), bos=(1, "<s>"), eos=(2, "</s>"), pad=(3, "<pad>"))
MODEL = ModelConfig(vocab_size=11, n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_ff=12, rope_theta=123_456.0)


def test_every_parameter_of_the_decoder_has_its_own_name_in_llama() -> None:
    assert {llama_name(name) for name in expected_shapes(MODEL)} == {
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
    }


def test_layer_numbers_are_kept() -> None:
    assert llama_name("blocks.31.attention.key.weight") == "model.layers.31.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    "name", ["embedding.positions.weight", "blocks.x.attention.key.weight", "blocks.0.router.weight"]
)
def test_a_parameter_that_llama_lacks_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=name):
        llama_name(name)


def test_config_names_rope_and_dtype_for_both_generations_of_transformers() -> None:
    config = llama_config(MODEL, TOKENS, seq_len=64, dtype="bfloat16")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 123_456.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == 64
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 3]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("ffn", ["gelu", "relu"])
def test_all_reasons_against_llama_come_in_one_error(positions: str, ffn: str) -> None:
    model = ModelConfig(positions=positions, norm="layernorm", ffn=ffn)
    with pytest.raises(UserError) as caught:
        refuse_unless_llama(model)
    for reason in (f"positions={positions}", "norm=layernorm", f"ffn={ffn}"):
        assert reason in str(caught.value)


def test_a_llama_is_not_refused() -> None:
    assert reasons_against_llama(MODEL) == []
    refuse_unless_llama(MODEL)
