"""lm-evaluation-harness asks our decoder and its own reader of the exported folder the same, and gets the same answers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pretrain.convert.export_hf import export_hf
from pretrain.convert.weight_sources import load_decoder, open_weights
from pretrain.distributed.world import World
from pretrain.errors import UserError
from pretrain.evaluation.harness import DecoderLM
from pretrain.evaluation.request import EvaluationRequest, open_request
from pretrain.evaluation.tasks import run_tasks
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source
from tokenizer.models.open_tokenizer import load_tokenizer

LENGTH = 96  # of the sequences that the weights were made for
TEXT = "class Scanner:\n    def __init__(self, lexicon, flags=0):\n        self.lexicon = lexicon\n"
PAIRS = [
    ("import ", "os"),
    ("import", " os"),
    ("The quick brown", " fox jumps over the lazy dog"),
    ("", "def f(x):\n    return x\n"),
    ("trailing spaces   ", "then words"),
    ("é → ", "ünï"),
    (TEXT * 12, "    pass\n"),  # longer than the model reads
    ("x", TEXT),
    ("import ", "os.path"),
]


@pytest.fixture(scope="module")
def exported(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = memory_source(sentencepiece_model, seq_len=LENGTH)
    for tensor in source.tensors.values():
        if tensor.dim() > 1:
            tensor *= 8  # fresh weights find everything equally likely
    return export_hf(source, tmp_path_factory.mktemp("export") / "exported").folder


@pytest.fixture(scope="module")
def theirs(exported: Path) -> HFLM:
    return HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3)


def ours(exported: Path, world: World | None = None, gather: Any = lambda value: [value]) -> DecoderLM:
    weights = open_weights(exported)
    assert weights.tokenizer is not None
    codec = load_tokenizer(weights.tokenizer)
    world = world or World()
    return DecoderLM(load_decoder(weights), codec, max_length=LENGTH, batch_size=3, world=world, gather=gather)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def generated(lm: Any, contexts: list[str], **options: Any) -> list[str]:
    return lm.generate_until(requests("generate_until", [(context, dict(options)) for context in contexts]))


def likeliest(lm: DecoderLM) -> tuple[str, str]:
    """A context and its greedy continuation, where the text of that is read as the same token again."""
    contexts = [TEXT[:length] for length in range(5, 80)]
    for context, text in zip(contexts, generated(lm, contexts, max_gen_toks=1), strict=True):
        if text and text.isalpha() and len(lm._encode_pair(context, text)[1]) == 1:
            return context, text
    raise AssertionError("no such context")


def test_continuations_are_as_likely_as_the_harness_finds_them(exported: Path, theirs: HFLM) -> None:
    lm = ours(exported)
    context, text = likeliest(lm)
    pairs = [
        *PAIRS,
        (context, text),
        (context, f"{text}→"),
    ]  # of the last, the first token is the likeliest and no other
    found = lm.loglikelihood(requests("loglikelihood", pairs))
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [log_p for log_p, _ in found] == pytest.approx([log_p for log_p, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [greedy for _, greedy in found] == [False] * len(PAIRS) + [True, False]
    # A space at the end of the context belongs to the continuation: the first two are one request.
    assert len({round(log_p, 3) for log_p, _ in found}) == len(pairs) - 1


@pytest.mark.parametrize("texts", [["x"], [TEXT, TEXT * 12, "y", ""], [TEXT * 30]], ids=["short", "several", "long"])
def test_whole_texts_are_as_likely_as_the_harness_finds_them(exported: Path, texts: list[str]) -> None:
    # Its own default puts a bos behind the bos and counts how likely that is, which no document of the shards has.
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=3, add_bos_token=False)
    arguments = requests("loglikelihood_rolling", [(text,) for text in texts])
    expected = theirs.loglikelihood_rolling(arguments, disable_tqdm=True)
    found = ours(exported).loglikelihood_rolling(arguments)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
    assert all((log_p < -1) == bool(text) for log_p, text in zip(found, texts, strict=True))


@pytest.mark.parametrize(
    "options", [{"max_gen_toks": 6}, {"until": ["e"], "max_new_tokens": 12}, {"until": "s", "max_gen_toks": 12}]
)
def test_texts_go_on_as_in_the_harness(exported: Path, theirs: HFLM, options: dict[str, Any]) -> None:
    contexts = [*(TEXT[:length] for length in range(5, 85, 2)), TEXT, TEXT * 12]
    found = generated(ours(exported), contexts, **options)
    expected = generated(theirs, contexts, **options, do_sample=False)
    # Fresh weights also make bytes that are no text, of which each decoder makes something else.
    pairs = [pair for pair in zip(found, expected, strict=True) if "\N{REPLACEMENT CHARACTER}" not in "".join(pair)]
    assert len({ours for ours, _ in pairs}) > 3
    assert all(ours == theirs for ours, theirs in pairs)
    assert not any(stop in text for text in found for stop in options.get("until", ()))


def test_a_text_without_a_limit_gets_half_the_context(exported: Path) -> None:
    lm = ours(exported)
    (text,) = generated(lm, ["import "])
    assert text.startswith(generated(lm, ["import "], max_gen_toks=8)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": LENGTH}, f"{LENGTH} new tokens"),
        ({"do_sample": True}, "a task samples"),
        ({"temperature": 0.7}, "a task samples"),
    ],
)
def test_what_cannot_be_generated_is_refused(exported: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generated(ours(exported), ["import "], **options)


def test_a_continuation_beyond_the_context_is_refused(exported: Path) -> None:
    with pytest.raises(UserError, match=f"the limits are 1 and {LENGTH}"):
        ours(exported).loglikelihood(requests("loglikelihood", [("a", TEXT * 12)]))


@pytest.mark.parametrize("size", [2, 3, 20])
def test_several_processes_give_the_answers_of_one_to_the_last_bit(exported: Path, size: int) -> None:
    alone = ours(exported)
    calls = {
        "loglikelihood": [(context, text) for context, text in PAIRS],
        "loglikelihood_rolling": [(TEXT,), (TEXT * 12,), ("y",), (TEXT * 2,)],
        "generate_until": [(context, {"max_gen_toks": 4}) for context, _ in PAIRS[:5]],
    }
    for kind, arguments in calls.items():
        expected = getattr(alone, kind)(requests(kind, arguments))
        parts: list[Any] = []

        def note(value: Any, parts: list[Any] = parts) -> list[Any]:
            parts.append(value)
            raise _NoteError

        for rank in range(size):
            with pytest.raises(_NoteError):
                getattr(ours(exported, World(rank, size), note), kind)(requests(kind, arguments))
        together = ours(exported, World(size - 1, size), lambda _, parts=parts: parts)
        assert getattr(together, kind)(requests(kind, arguments)) == expected


class _NoteError(Exception):
    """Ends what only collects a process's part."""


def test_memory_is_for_a_batch_and_not_for_all(exported: Path) -> None:
    shapes: list[torch.Size] = []
    lm = ours(exported)
    lm.model.register_forward_hook(lambda _module, _inputs, logits: shapes.append(logits.shape))
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert len(shapes) == 3
    assert max(shape[0] for shape in shapes) == 3
    assert shapes[0][1] == LENGTH > shapes[-1][1]


@pytest.fixture
def tasks_path(tmp_path: Path) -> Path:
    """A folder with one task of each kind."""
    lines = [{"text": TEXT * n, "ends": [" a", " bc", " def"], "right": n % 3} for n in range(1, 7)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\ntest_split: test\n"
    kinds = {
        "choice": 'output_type: multiple_choice\ndoc_to_text: "{{text}}"\ndoc_to_choice: "{{ends}}"\n'
        "doc_to_target: right\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n",
        "writing": 'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{ends[0]}}"\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]\n',
    }
    for name, text in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    (tmp_path / "all.yaml").write_text("group: everything\ntask: [choice, rolling, writing]\n")
    return tmp_path


def test_local_tasks_have_the_metrics_that_the_harness_finds(
    exported: Path, tasks_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    request = EvaluationRequest(str(exported), tasks=("everything",), tasks_path=str(tasks_path), seq_len=LENGTH)
    opened = open_request(request)
    found = run_tasks(request, opened, load_decoder(opened.weights), World(), lambda value: [value])
    loaded = TaskManager(include_path=str(tasks_path), include_defaults=False).load(["everything"])
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", add_bos_token=True)
    # Of rolling texts it counts a bos more; see above.
    expected = evaluate(theirs, loaded, bootstrap_iters=0)["results"]
    for task, metric in (("choice", "acc"), ("choice", "acc_norm"), ("writing", "exact_match")):
        assert found[task]["metrics"][metric] == expected[task][f"{metric},none"]
    assert found["choice"]["metrics"]["acc"] > 0
    assert found["choice"]["stderr"]["acc"] > 0
    assert found["choice"]["samples"] == found["rolling"]["samples"] == 6
    text = sum(len(TEXT) * n for n in range(1, 7))
    log_p = ours(exported).loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT * n,) for n in range(1, 7)]))
    assert found["rolling"]["metrics"]["bits_per_byte"] == pytest.approx(-sum(log_p) / text / math.log(2))
