"""`pretrain generate` on an exported directory: what it prints, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pretrain.cli.cmd_generate import generate
from pretrain.convert.export_hf import export_hf
from pretrain.errors import PretrainError, UserError
from pretrain.generation.completion import complete
from pretrain.generation.prompts import encode_prompt, gather_prompts
from pretrain.generation.sampling import greedy
from pretrain.model.logits_fn import decoder_logits
from tests.support.processes import ENVIRONMENT
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import MemorySource, decoder_of, memory_source, small_model
from tokenizer.models.open_tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def source(sentencepiece_model: Path) -> MemorySource:
    return memory_source(sentencepiece_model, small_model(init_std=0.2), seq_len=128)


@pytest.fixture(scope="module")
def folder(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(source, tmp_path_factory.mktemp("directory") / "out").folder


def ran(*arguments: str | Path) -> Any:
    """The command's result; threads are one, as everywhere in the tests."""
    result = CliRunner().invoke(generate, ["--threads", "1", "--device", "cpu", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def lines(*arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran(*arguments, "--json").stdout.splitlines()]


def refused(*arguments: str | Path) -> str:
    with pytest.raises(PretrainError) as caught:
        ran(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def expected(source: MemorySource, texts: Sequence[str], count: int) -> list[str]:
    assert source.tokenizer is not None
    codec = load_tokenizer(source.tokenizer)
    prompts = [encode_prompt(codec, text) for text in texts]
    stop = frozenset({codec.eos_id()})
    made = complete(decoder_logits(decoder_of(source)), codec, prompts, greedy, max_new_tokens=count, stop_ids=stop)
    return [completion.text for completion in made]


def test_one_text_is_printed_with_its_prompt(source: MemorySource, folder: Path) -> None:
    (text,) = expected(source, ["def f"], 9)
    assert ran(folder, "def f", "--greedy", "--max-new-tokens", "9").stdout == f"def f{text}\n"
    assert ran(folder, "def f", "--temperature", "0", "--max-new-tokens", "9").stdout == f"def f{text}\n"


def test_several_texts_come_in_their_order(source: MemorySource, folder: Path, tmp_path: Path) -> None:
    texts = ["def f", "", "import os\nclass Path:"]
    made = expected(source, texts, 9)
    options = ("--greedy", "--max-new-tokens", "9")
    assert ran(folder, *texts, *options).stdout == "\n".join(
        f"{text}{more}\n" for text, more in zip(texts, made, strict=True)
    )
    file = tmp_path / "prompts.jsonl"
    file.write_text('"def f"\n{"text": "", "source": "a"}\n{"prompt": "import os\\nclass Path:"}\n')
    for batch in ("1", "2", "32"):
        found = lines(folder, "--prompts", file, *options, "--batch-size", batch)
        assert [line["prompt"] for line in found] == texts
        assert [line["text"] for line in found] == made
        assert {line["finish"] for line in found} == {"length"}
        assert {len(line["tokens"]) for line in found} == {9}


def test_no_text_at_all_begins_a_document(source: MemorySource, folder: Path) -> None:
    assert ran(folder, "--greedy", "--max-new-tokens", "5").stdout == f"{expected(source, [''], 5)[0]}\n"


def test_a_sampled_text_depends_on_its_prompt_and_its_seed_only(folder: Path) -> None:
    options = ("--max-new-tokens", "12", "--top-k", "50", "--top-p", "0.95", "--temperature", "1.1")
    alone = lines(folder, "def f", *options, "--seed", "4")
    several = lines(folder, "class", "def f", *options, "--seed", "3", "--num-samples", "3", "--batch-size", "4")
    assert [(line["prompt"], line["sample"]) for line in several] == [
        (prompt, sample) for prompt in ("class", "def f") for sample in range(3)
    ]
    assert several[4]["text"] == alone[0]["text"]
    assert len({line["text"] for line in several}) == 6


def test_beams_are_printed_best_first_with_their_scores(folder: Path) -> None:
    found = lines(folder, "def f", "class", "--beams", "4", "--num-samples", "2", "--max-new-tokens", "6")
    assert [(line["prompt"], line["sample"]) for line in found] == [
        ("def f", 0),
        ("def f", 1),
        ("class", 0),
        ("class", 1),
    ]
    assert found[0]["score"] >= found[1]["score"]
    one_by_one = lines(folder, "class", "--beams", "4", "--max-new-tokens", "6", "--batch-size", "1")
    assert one_by_one[0]["tokens"] == found[2]["tokens"]
    longer = lines(folder, "class", "--beams", "4", "--max-new-tokens", "6", "--length-penalty", "0")
    assert longer[0]["score"] == pytest.approx(6 * one_by_one[0]["score"], rel=1e-5)


def test_stop_texts_and_stop_ids_end_a_text(folder: Path) -> None:
    (free,) = lines(folder, "def f", "--greedy", "--max-new-tokens", "20")
    stop = free["text"][5:8]
    (cut,) = lines(folder, "def f", "--greedy", "--max-new-tokens", "20", "--stop", stop, "--stop", "never there")
    assert (cut["text"], cut["finish"]) == (free["text"][: free["text"].index(stop)], "stop")
    token = free["tokens"][6]
    (cut,) = lines(folder, "def f", "--greedy", "--max-new-tokens", "20", "--stop-id", str(token))
    assert (cut["tokens"], cut["finish"]) == (free["tokens"][: free["tokens"].index(token)], "stop")


def test_the_end_of_the_context_is_said_beside_the_text(folder: Path) -> None:
    result = ran(folder, "def f", "--greedy", "--max-new-tokens", "1000", "--json")
    (line,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert line["finish"] == "context"
    assert "text 1 is cut at the model's context: model.max_seq_len=128" in result.stderr


def test_text_that_spells_the_end_of_a_document_is_text(folder: Path) -> None:
    assert lines(folder, "a</s>b", "--max-new-tokens", "1")[0]["prompt"] == "a</s>b"
    assert ran(folder, "a</s>b", "--max-new-tokens", "3", "--seed", "1").stdout.startswith("a</s>b")


def test_bf16_computes_something_else(folder: Path) -> None:
    options = ("def f", "--greedy", "--max-new-tokens", "100")
    half = lines(folder, *options, "--dtype", "bf16")[0]["tokens"]
    assert half != lines(folder, *options)[0]["tokens"]
    assert len(half) == 100


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--beams", "2", "--temperature", "0.5"], "--beams 2 with --temperature"),
        (["--beams", "2", "--seed", "0", "--stop", "x"], "--beams 2 with --seed, --stop"),
        (["--beams", "2", "--num-samples", "3"], "--num-samples 3 is above --beams 2"),
        (["--length-penalty", "2"], "--length-penalty 2 has no effect without --beams"),
        (["--greedy", "--temperature", "0.5"], "--greedy contradicts --temperature 0.5"),
        (["--greedy", "--num-samples", "2"], "greedy decoding gives the same text each time"),
        (["--stop", ""], "--stop is empty"),
        (["--step", "3"], "step 3: "),
        (["--greedy", "--top-k", "5", "--seed", "4"], "--top-k, --seed: no effect on greedy decoding"),
        (["--temperature", "nan"], "--temperature nan is not a finite number"),
        (["--beams", "2", "--length-penalty", "nan"], "--length-penalty nan is not a finite number"),
        (["--stop-id", "9999999"], "--stop-id 9999999: the model has the ids 0 to"),
        (["--tokenizer", "nowhere.model"], "nowhere.model: no such tokenizer"),
        (["--prompts", "nowhere.txt"], "both TEXT and --prompts"),
    ],
)
def test_options_without_effect_are_refused(options: list[str], said: str, folder: Path) -> None:
    assert said in refused(folder, "text", *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has one")
def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA device"):
        ran(folder, "text", "--device", "cuda")


def test_a_prompt_that_is_too_long_is_named(folder: Path) -> None:
    said = refused(folder, "fine", "long " * 200)
    assert said.startswith("prompt 2: a prompt has ")
    assert "model.max_seq_len=128" in said


def test_weights_that_are_not_finite_are_refused(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = decoder_of(source)
    with torch.no_grad():
        broken.blocks[1].feed_forward_norm.weight[3] = float("nan")
    monkeypatch.setattr("pretrain.generation.session.open_weights", lambda *_: source)
    monkeypatch.setattr("pretrain.convert.weight_sources.load_decoder", lambda _: broken)
    assert "blocks.1.feed_forward_norm.weight holds numbers that are not finite" in refused("run", "text")


def test_weights_without_a_tokenizer_are_refused(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = MemorySource(source.config, source.tensors, None)
    monkeypatch.setattr("pretrain.generation.session.open_weights", lambda *_: bare)
    assert "was saved without a tokenizer" in refused("run", "text")
    assert ran("run", "text", "--max-new-tokens", "2", "--tokenizer", source.tokenizer).stdout.startswith("text")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b"", "has no prompts"),
        ("p.jsonl", b'"a"\n{"text": 3}\n', "p.jsonl:2: not a prompt"),
        ("p.jsonl", b'"a"\n"b\n', "p.jsonl:2: not JSON"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl:1: not JSON"),
        ("p.txt", b"a\xff", "not UTF-8 at byte 1"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_file_without_prompts_is_refused(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        gather_prompts([], tmp_path / name)
    assert said in str(caught.value)


def test_a_plain_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b'"a"\r\n\n b\xe2\x80\xa8c')
    assert gather_prompts([], tmp_path / "p.txt") == ['"a"', "", " b\u2028c"]
    assert gather_prompts([], None) == [""]


# --- in a terminal ----------------------------------------------------------------------------------------------------


def test_text_is_shown_as_it_is_made_and_ctrl_c_ends_it(sentencepiece_model: Path, tmp_path: Path) -> None:
    """A context so long that it is still writing when it is stopped."""
    slow = memory_source(sentencepiece_model, small_model(max_seq_len=100_000), seq_len=100_000)
    export_hf(slow, tmp_path / "out")
    with subprocess.Popen(
        [
            # A shell that runs the tests in the background ignores SIGINT, and a child inherits that.
            *("env", "--default-signal=INT", sys.executable),
            "-m",
            "pretrain.cli",
            "generate",
            str(tmp_path / "out"),
            "Say: ",
            "--greedy",  # a drawn token may end the text before the signal comes
            "--max-new-tokens",
            "99000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        shown = b""
        while len(shown) < 60:
            shown += os.read(process.stdout.fileno(), 1000)
        assert shown.startswith(b"Say: ")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
