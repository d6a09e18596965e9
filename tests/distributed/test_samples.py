"""Texts from a model that trains: in every ZeRO stage and precision, and without any effect on the training."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.convert.weight_sources import load_decoder, open_weights
from pretrain.generation.completion import complete
from pretrain.generation.prompts import encode_prompt
from pretrain.generation.sampling import greedy
from pretrain.model.logits_fn import decoder_logits
from pretrain.training.metrics import read_lines
from tests.support.processes import pretrain, train
from tests.support.runs import EAGER_ZERO3, make_run
from tests.support.shards import write_corpus
from tests.support.tokenizers import source_chunks, train_sentencepiece
from tokenizer.models.base import load_tokenizer

PROMPTS = ["def ", "", "import os\nclass"]
TOKENS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on real text, with its tokenizer."""
    folder = tmp_path_factory.mktemp("samples")
    model = train_sentencepiece(folder / "tokenizer.model", vocab_size=400)
    path = make_run(
        folder,
        model={
            "vocab_size": 400,
            "n_layers": 2,
            "d_model": 48,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_ff": 96,
            "max_seq_len": 40,
            "init_std": 0.1,
        },
        schedule={"total_steps": 10, "warmup_steps": 2},
        checkpoint={"every_steps": 5},
        eval={"every_steps": 5, "max_sequences": 8, "prompts": PROMPTS, "sample_tokens": TOKENS},
        engine={"zero_stage": 2, "precision": "fp32", "device": "cpu", "deepspeed": EAGER_ZERO3},
        log={"tensorboard": True},
    )
    codec, digest = load_tokenizer(model), hashlib.sha256(model.read_bytes()).hexdigest()
    ids = [token for text in source_chunks(60_000) for token in [1, *codec.encode(text), 2]]
    for name, part in (("train", ids[:20_000]), ("valid", ids[20_000:22_000])):
        shutil.rmtree(folder / name)
        write_corpus(folder / name, part, vocab_size=400, block_tokens=1024, tokenizer_sha256=digest)
    text = path.read_text()
    path.write_text(text.replace("data:\n", f"data:\n  tokenizer: {model}\n"))
    return path


def samples(folder: Path) -> dict[int, list[dict]]:
    return {line["step"]: line["samples"] for line in read_lines(folder / "samples.jsonl")}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


def expected(run: Path, step: int, count: int = TOKENS) -> list[str]:
    """What the finished weights of a step write, in one process."""
    source = open_weights(run, step)
    assert source.tokenizer is not None
    codec = load_tokenizer(source.tokenizer)
    prompts = [encode_prompt(codec, prompt) for prompt in PROMPTS]
    stop = frozenset({codec.eos_id()})
    reader = decoder_logits(load_decoder(source))
    return [made.text for made in complete(reader, codec, prompts, greedy, max_new_tokens=count, stop_ids=stop)]


@pytest.fixture(scope="module")
def plain(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without samples."""
    folder = tmp_path_factory.mktemp("plain")
    train(config, 2, f"run.dir={folder}", "eval.prompts=[]")
    assert not (folder / "samples.jsonl").exists()
    return folder


# At stage 3, to the end of the context, at which rows leave one by one: ranks that do not leave alike hang.
@pytest.mark.parametrize(("stage", "count"), [pytest.param(0, TOKENS, marks=pytest.mark.slow), (2, TOKENS), (3, 1000)])
def test_samples_are_what_the_checkpoint_writes_and_change_no_loss(
    stage: int, count: int, config: Path, plain: Path, tmp_path: Path
) -> None:
    done = train(config, 2, f"run.dir={tmp_path}", f"engine.zero_stage={stage}", f"eval.sample_tokens={count}")
    found = samples(tmp_path)
    assert list(found) == [0, 5, 10]
    for step in (5, 10):
        assert [sample["text"] for sample in found[step]] == expected(tmp_path, step, count)
    assert [sample["prompt"] for sample in found[0]] == PROMPTS
    assert found[0] != found[10]
    assert "sample at step 10: def " in done.stdout + done.stderr
    if stage == 2:
        assert losses(tmp_path) == losses(plain)
        assert_tensorboard(tmp_path, found)


def assert_tensorboard(run: Path, found: dict[int, list[dict]]) -> None:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    board.Reload()
    for number, prompt in enumerate(PROMPTS, start=1):
        events = board.Tensors(f"samples/{number:02d}/text_summary")
        assert [event.step for event in events] == [0, 5, 10]
        for event in events:
            shown = event.tensor_proto.string_val[0].decode()
            whole = prompt + found[event.step][number - 1]["text"]
            assert [line[4:] for line in shown.split("\n")] == whole.split("\n")
            assert all(line.startswith("    ") for line in shown.split("\n"))


def test_samples_in_bf16(config: Path, tmp_path: Path) -> None:
    done = pretrain("train", config, f"run.dir={tmp_path}", "engine.precision=bf16", "engine.zero_stage=1")
    assert done.returncode == 0, done.stderr
    assert len(samples(tmp_path)) == 3
    # The weights that it computes with are rounded ones: single tokens may differ, whole texts do not.
    assert samples(tmp_path)[10][0]["text"][:4] == expected(tmp_path, 10)[0][:4]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_samples_in_bf16_change_no_loss(stage: int, config: Path, tmp_path: Path) -> None:
    half = ("engine.precision=bf16", f"engine.zero_stage={stage}", "engine.activation_checkpoint_every=1")
    train(config, 2, f"run.dir={tmp_path / 'with'}", *half)
    train(config, 2, f"run.dir={tmp_path / 'without'}", *half, "eval.prompts=[]")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(samples(tmp_path / "with")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_compiled_blocks_are_not_compiled_for_each_length(stage: int, config: Path, tmp_path: Path) -> None:
    options = ("engine.compile=true", f"engine.zero_stage={stage}")
    done = pretrain("train", config, f"run.dir={tmp_path}", *options, timeout=600)
    assert done.returncode == 0, done.stderr
    assert list(samples(tmp_path)) == [0, 5, 10]
    assert [sample["text"] for sample in samples(tmp_path)[10]] == expected(tmp_path, 10)


def test_a_resumed_run_has_each_sample_once_and_those_of_the_whole_run(config: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert pretrain("train", config, f"run.dir={whole}").returncode == 0
    shutil.copytree(whole, resumed)
    for path in (resumed / "checkpoints" / "step-00000010", resumed / "status"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with (resumed / "samples.jsonl").open("a") as file:
        file.write('{"step": 10, "sam')  # what a kill leaves
    assert pretrain("train", config, f"run.dir={resumed}").returncode == 0
    assert (resumed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert pretrain("train", config, f"run.dir={resumed}").returncode == 0  # it is done, and repeats none
    assert (resumed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (resumed / "logs" / "replaced-001-samples.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["data.tokenizer=null"], "eval.prompts needs a tokenizer"),
        (["eval.every_steps=0"], "eval.every_steps=0: texts are made at evaluations"),
        ([f"eval.prompts=['short','{'long ' * 64}']"], "eval.prompts[1]: a prompt has"),
        (["eval.prompts=text"], "eval.prompts='text' is not a list of strings"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_before_anything_starts(
    override: Sequence[str], said: str, config: Path, tmp_path: Path
) -> None:
    done = pretrain("train", config, f"run.dir={tmp_path / 'run'}", *override)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_that_is_to_stop_does_not_finish_its_samples_first(config: Path, tmp_path: Path) -> None:
    """Without held-out sources, samples are all that there is at an evaluation."""
    options = ("data.valid=null", "run.time_limit_minutes=0.0001")
    done = pretrain("train", config, f"run.dir={tmp_path}", *options)
    assert done.returncode == 0, done.stderr
    assert "samples at step 0 were cut short" in done.stdout + done.stderr
    assert not (tmp_path / "samples.jsonl").exists()
    assert (tmp_path / "status").read_text().startswith("unfinished")
