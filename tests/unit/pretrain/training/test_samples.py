import json
from pathlib import Path

import pytest
from torch import Tensor

from pretrain.config.schema import Config, DataConfig, EvalConfig, LogConfig, ModelConfig
from pretrain.errors import ConfigError
from pretrain.generation.prompts import sample_prompts
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import decoder_logits
from pretrain.run_folder import RunFolder
from pretrain.training.metrics import MetricsWriter, read_lines
from pretrain.training.recorder import Recorder
from pretrain.training.samples import describe_samples, make_samples
from tests.support.shapes import small_decoder
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401


def test_forwards_do_not_depend_on_what_the_weights_write() -> None:
    """Or ranks that differ in a last bit would wait for each other for ever."""
    shapes: list[list[tuple[int, ...]]] = []
    for seed in range(3):
        reader, seen = decoder_logits(small_decoder(seed)), []

        def logits(tokens_BT: Tensor, cache: KVCache, reader=reader, seen=seen) -> Tensor:
            seen.append(tuple(tokens_BT.shape))
            return reader.logits(tokens_BT, cache)

        made = make_samples(reader._replace(logits=logits), [[1, 2], [3] * 20], 10, lambda: None)
        assert [len(tokens) for tokens in made] == [10, 4]
        shapes.append(seen)
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(shapes[0]) == 10


def test_every_forward_can_be_the_last() -> None:
    calls: list[int] = []

    def stop_at_the_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyError

    with pytest.raises(KeyError):
        make_samples(decoder_logits(small_decoder()), [[1, 2]], 10, stop_at_the_third)


def test_a_sample_ends_with_its_document(sentencepiece_model: Path) -> None:
    files = {"tokenizer.model": sentencepiece_model.read_bytes()}
    config = Config(
        model=ModelConfig(max_seq_len=64),
        data=DataConfig(tokenizer=str(sentencepiece_model)),
        eval=EvalConfig(prompts=("def f", "")),
    )
    prompts = sample_prompts(config, files)
    assert [prompt[0] for prompt in prompts] == [1, 1]
    behind = prompts[0][1:]
    found = describe_samples(config.eval.prompts, prompts, [[*behind, 2, *behind], behind], files)
    assert found == [
        {"prompt": "def f", "text": "def f", "ended": True},
        {"prompt": "", "text": "def f", "ended": False},
    ]


def test_all_prompts_that_are_too_long_are_named(sentencepiece_model: Path) -> None:
    files = {"tokenizer.model": sentencepiece_model.read_bytes()}
    config = Config(model=ModelConfig(max_seq_len=8), eval=EvalConfig(prompts=("x " * 20, "fine", "y " * 20)))
    with pytest.raises(ConfigError) as caught:
        sample_prompts(config, files)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["eval.prompts[0]", "eval.prompts[2]"]


def test_samples_of_a_step_are_kept_once_and_rewound_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    for resumed, steps in ((None, (0, 5, 10)), (5, (5, 10)), (10, (10,))):
        writer = MetricsWriter(folder, resumed_step=resumed, tensorboard=False)
        for step in steps:
            writer.samples(step, [{"prompt": "a", "text": f"{resumed}\n\u2028", "ended": False}])
        writer.close()
    lines = read_lines(folder.samples)
    assert [(line["step"], line["samples"][0]["text"].split()[0]) for line in lines] == [
        (0, "None"),
        (5, "None"),
        (10, "5"),
    ]
    (replaced,) = folder.logs.glob("replaced-*-samples.jsonl")
    assert [json.loads(line)["step"] for line in replaced.read_text().splitlines()] == [0, 5, 10]


def test_a_console_shows_the_beginning_of_the_first_sample_whatever_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model may write anything: escape codes, markup, what the console cannot show. None of it may end a training."""
    monkeypatch.setattr("pretrain.training.recorder.getpreferredencoding", lambda _: "ascii")
    folder = RunFolder(tmp_path / "run")
    folder.make()
    recorder = Recorder(folder, Config(log=LogConfig(tensorboard=False)), resumed_step=None, speaks=True)
    for step, text in ((1, "a\n\n b\x1b[2J[/red]漢\u2028\ufffd"), (2, "long " * 100)):
        recorder.samples(
            step, [{"prompt": "> ", "text": text, "ended": False}, {"prompt": "2", "text": "x", "ended": True}]
        )
    recorder.close()
    shown = capfd.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert lines[0] == "sample at step 1: > a b [2J[/red]? ?"
    assert lines[1].startswith("sample at step 2: > long long") and lines[1].endswith(" ...")
    assert len(lines) == 2 and len(lines[1]) < 130
    assert [len(line["samples"]) for line in read_lines(folder.samples)] == [2, 2]
