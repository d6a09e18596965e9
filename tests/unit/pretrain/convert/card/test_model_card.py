"""The card as a Markdown reader sees it, whatever names a configuration holds."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pretrain.config.load import load_saved
from pretrain.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StoreConfig,
)
from pretrain.convert.card.curve import CURVE, History
from pretrain.convert.card.facts import CardFacts, describe_shape, ledger_of, recipe
from pretrain.convert.card.markdown import code_span, escaped
from pretrain.convert.card.model_card import CARD_FILES, model_card, write_card
from pretrain.convert.verify.logits import LogitProof
from pretrain.convert.verify.token_ids import TokenizerProof

EVIL = "a|b`c`*d*_e_ <img src=x onerror=y> [f](http://g) ![h](i) & &amp; \\| \n# j http://k.l m@n.o \u202e$x$ ~~p~~ ---"


def facts(**changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "name": "model",
        "config": Config(),
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "step": 1_200,
        "tokens": 3_000_000,
        "parameters": 5_000_000,
        "dtype": "bfloat16",
        "context": 512,
        "control_symbols": ["<s>", "<|im_start|>"],
        "logits": LogitProof(1e-6, 20.0, 512),
        "tokenizer": TokenizerProof(1_086, 257, 58_000),
        "padding": "<pad>",
        "ledger": {"web": {"tokens": 1e6, "epochs": 0.5}, "code": {"tokens": 2e6, "epochs": 2.0}},
    }
    return CardFacts(**(values | changes))


def parsed(card: str) -> list[Token]:
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)


def rows(card: str) -> list[list[str]]:
    """Text of the cells of all tables."""
    found: list[list[str]] = []
    tokens = parsed(card)
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            found.append([])
        if token.type in ("td_open", "th_open"):
            found[-1].append("".join(child.content for child in tokens[place + 1].children or []))
    return found


def inline_types(card: str) -> set[str]:
    return {child.type for token in parsed(card) for child in token.children or []}


def test_the_card_has_data_by_source_the_largest_first() -> None:
    assert rows(model_card(facts()))[-2:] == [["code", "2,000,000", "66.7%", "2"], ["web", "1,000,000", "33.3%", "0.5"]]


def test_weights_without_a_ledger_claim_no_tokens_by_source() -> None:
    config = Config(data=DataConfig(train={"web": SourceConfig(), "code": SourceConfig()}))
    card = model_card(facts(config=config, ledger={}))
    assert "Sources: web, code. How many tokens of each were read is not recorded." in card


def test_the_evaluation_is_the_last_one_by_source() -> None:
    last = {"step": 1_000, "loss": 2.0, "bits_per_byte": 0.9, "accuracy": 0.25, "loss/a|b": 1.5, "loss/c": 2.5}
    last |= {"bits_per_byte/c": 1.25, "accuracy/c": 0.5, "bits_per_byte/a|b": None}
    card = model_card(facts(history=History((), ({"step": 0, "loss": 9.0}, last))))
    assert "after step 1,000" in card
    assert rows(card)[-3:] == [
        ["all", "2.0000", "7.389", "0.9000", "25.0%"],
        ["a|b", "1.5000", "4.482", "–", "–"],
        ["c", "2.5000", "12.18", "1.2500", "50.0%"],
    ]
    assert "not of the mean" not in card
    averaged = model_card(facts(history=History((), (last,)), averaged=(800, 1_000)))
    assert "mean of steps 800, 1000." in averaged and "not of the averaged weights" in averaged


@pytest.mark.parametrize("where", ["source", "valid", "name", "base_model", "symbol"])
def test_names_stay_text(where: str) -> None:
    evil_config = Config(data=DataConfig(valid={EVIL: SourceConfig()}))
    changes: dict[str, Any] = {
        "source": {"ledger": {EVIL: {"tokens": 1.0, "epochs": 1.0}}},
        "valid": {"config": evil_config, "history": History((), ({"step": 1, "loss": 1.0, f"loss/{EVIL}": 1.0},))},
        "name": {"name": EVIL},
        "base_model": {"base_model": EVIL},
        "symbol": {"control_symbols": [EVIL, "`", "``|", " "]},
    }[where]
    card = model_card(facts(**changes))
    harmless = {"source": {"ledger": {"a": {"tokens": 1.0, "epochs": 1.0}}}, "base_model": {"base_model": "a"}}.get(
        where
    )
    plain = model_card(facts(**(harmless or {"history": changes.get("history")})))
    # Nothing but text is added: the same blocks, and no link, picture or tag in them.
    assert [token.type for token in parsed(card)] == [token.type for token in parsed(plain)]
    assert inline_types(card) <= {"text", "code_inline", "softbreak", "link_open", "link_close"}
    links = [child.attrGet("href") for token in parsed(card) for child in token.children or []]
    assert {link for link in links if link} == {"pretrain_config.yaml"}
    text = "".join(child.content for token in parsed(card) for child in token.children or [])
    assert EVIL.replace("\n", "\\n").replace("\u202e", "\\u202e") in text


@given(st.text(max_size=40))
def test_escaped_text_reads_as_it_was(text: str) -> None:
    [_, inline, _] = MarkdownIt("commonmark").parse(f"x{escaped(text)}x")
    visible = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    assert [child.type for child in inline.children or []] == ["text"] and inline.children is not None
    assert inline.children[0].content == f"x{visible}x"


@given(st.text(alphabet="` a|<", min_size=1, max_size=8))
def test_a_code_span_holds_any_backticks(text: str) -> None:
    [_, inline, _] = MarkdownIt("commonmark").parse(f"x {code_span(text)} x")
    [code] = [child.content for child in inline.children or [] if child.type == "code_inline"]
    assert code.strip() == text.strip()


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(facts(base_model="org/some-model.v2"))) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/some-model.v2",
        "tags": ["pretrain-toolkit", "llama"],
    }


@pytest.mark.parametrize("base", ["/home/me/model", "../model", "x: y\n- z", "org/a/b", "a/" + "b" * 200])
def test_a_base_that_is_no_name_on_the_hub_is_said_in_words_alone(base: str) -> None:
    card = model_card(facts(base_model=base))
    assert "base_model" not in front_matter(card)
    assert f"starting from {escaped(base)}" in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "RMSNorm before each sub-layer; rotary positions with theta 10000; 12 heads of width 64; SwiGLU"),
        ({"n_kv_heads": 4, "qk_norm": "head"}, "12 query and 4 key/value heads of width 64, queries and keys normalized by"),
        ({"norm_position": "post", "qk_norm": "full"}, "RMSNorm after each sub-layer"),
        (
            {"norm": "layernorm", "norm_bias": True, "positions": "learned"}
            | {"ffn": "gelu", "ffn_bias": True, "attention_bias": "all"},
            "LayerNorm with biases before each sub-layer; learned positions; 12 heads of width 64, biases; GELU with biases",
        ),
        ({"rope_fraction": 0.25, "attention_bias": "qkv"}, "rotary positions of 16 channels a head with theta 10000"),
        ({"rope_scaling": "yarn", "rope_factor": 4.0}, "theta 10000, scaled by 4 (yarn)"),
        ({"positions": "sinusoidal", "norm": "layernorm"}, "LayerNorm before each sub-layer; sinusoidal positions"),
    ],
)  # fmt: skip
def test_the_architecture_is_described_as_it_is(changes: dict[str, Any], said: str) -> None:
    assert said in "; ".join(describe_shape(ModelConfig(**changes)))


def test_a_run_that_began_with_other_weights_says_so_without_the_path() -> None:
    config = Config(run=RunConfig(init_from="/secret/models/base-1b"))
    card = model_card(facts(config=config))
    assert "starting from base-1b: 5,000,000 parameters" in card
    assert "secret" not in card + recipe(config) and "from scratch" not in card
    assert "from scratch" in model_card(facts())


def test_weights_that_were_not_trained_here_claim_no_training(tmp_path: Path) -> None:
    write_card(tmp_path, facts(step=0, tokens=0, ledger={}, base_model="org/base"))
    card = (tmp_path / "README.md").read_text()
    assert "converted with pretrain-toolkit from org/base:" in card and "AdamW" not in card and "### Data" not in card
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_without_a_padding_token_the_script_takes_another(tmp_path: Path) -> None:
    assert "tokenizer.pad_token = " not in model_card(facts())
    card = model_card(facts(padding=None))
    assert "tokenizer.pad_token = tokenizer.eos_token" in card and "The padding token is not" not in card
    for block in re.findall(r"```python\n(.*?)\n```\n", card, flags=re.DOTALL):
        compile(block, "README.md", "exec")


def test_the_name_of_a_folder_is_a_string_in_the_scripts() -> None:
    for block in re.findall(r"```python\n(.*?)\n```\n", model_card(facts(name='a"b\\c```\nd')), flags=re.DOTALL):
        compile(block, "README.md", "exec")


def test_the_files_of_a_card(tmp_path: Path) -> None:
    write_card(tmp_path, facts())
    assert {path.name for path in tmp_path.iterdir()} == set(CARD_FILES) - {CURVE}
    assert CURVE not in (tmp_path / "README.md").read_text()
    write_card(tmp_path, facts(history=History(((1, 3.0), (2, 2.0)), ())))
    assert {path.name for path in tmp_path.iterdir()} == set(CARD_FILES)
    assert f"]({CURVE})" in (tmp_path / "README.md").read_text()


def test_what_is_published_of_a_configuration_says_no_place(tmp_path: Path) -> None:
    source = SourceConfig(path="s3://secret/a", weight=2.0)
    config = Config(
        run=RunConfig(dir="/secret/run", seed=99, init_from="/secret/base"),
        data=DataConfig({"web": source}, {"web": source}, tokenizer="/secret/t", store=StoreConfig(cache_dir="/secret/c")),
        checkpoint=CheckpointConfig(upload="s3://secret/b"),
        engine=EngineConfig(deepspeed={"aio": {"path": "/secret/nvme"}}),
    )  # fmt: skip
    text = recipe(config)
    assert "secret" not in text
    values = yaml.safe_load(text)
    assert values["run"]["seed"] == 99 and values["data"]["train"]["web"]["weight"] == 2.0
    plain = dataclasses.replace(Config(), run=RunConfig(dir="", seed=99))
    (tmp_path / "config.yaml").write_text(recipe(plain))
    assert load_saved(tmp_path / "config.yaml").run.seed == 99


def test_a_ledger_that_is_none_is_left_out() -> None:
    class Source:
        state: Any = None

    source: Any = Source()
    for state in (None, {}, {"ledger": None}, {"ledger": {"a": 3, "b": {"tokens": "x", "epochs": 1}}}, 7):
        source.state = state
        assert ledger_of(source) == {}
    source.state = {"ledger": {"a": {"tokens": 3, "epochs": 0.5}}}
    assert ledger_of(source) == {"a": {"tokens": 3.0, "epochs": 0.5}}
    assert ledger_of(object()) == {}  # type: ignore[arg-type]
