"""docs/guides/fine-tune.md: its scripts, as they stand there, on what the quickstart exported."""

import logging
import re
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.repository import ROOT

GUIDE = ROOT / "docs/guides/fine-tune.md"
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets")


class Ran(NamedTuple):
    """What a script leaves: its folder, its global names, and what the libraries found worth a warning."""

    folder: Path
    names: dict[str, Any]
    warned: list[str]


def script(heading: str) -> str:
    """The one block of Python below a heading of the guide."""
    section = re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)
    [found] = [part for part in section if part.startswith(f"{heading}\n")]
    [block] = re.findall(r"```python\n(.*?)```", found, flags=re.DOTALL)
    return str(block)


@contextmanager
def warnings_of_the_libraries() -> Iterator[list[str]]:
    """Messages that they log for the user to see; `warnings.warn` is an error in all tests anyway."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(f"{record.name}: {record.getMessage()}")  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def run_script(heading: str, folder: Path) -> Ran:
    names: dict[str, Any] = {}
    with chdir(folder), warnings_of_the_libraries() as warned:
        exec(compile(script(heading), f"{GUIDE.name}: {heading}", "exec"), names)
    return Ran(folder, names, warned)


@pytest.fixture(scope="module")
def bench(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has `quickstart` in it, and none of what other tests leave beside theirs."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "quickstart").symlink_to(workplace / "quickstart")
    return folder


@pytest.fixture(scope="module")
def trained(bench: Path) -> Ran:
    return run_script("The Trainer", bench)


@pytest.fixture(scope="module")
def chatted(bench: Path) -> Ran:
    return run_script("A chat template, and SFTTrainer", bench)


@pytest.fixture(scope="module")
def adapted(bench: Path) -> Ran:
    return run_script("LoRA, merged", bench)


@pytest.fixture(scope="module")
def generated(bench: Path, trained: Ran, chatted: Ran, adapted: Ran) -> Ran:
    return run_script("Generate from the results", bench)


def losses_of(ran: Ran) -> list[float]:
    return [entry["loss"] for entry in ran.names["trainer"].state.log_history if "loss" in entry]


def ids_of(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(text).input_ids


# The quickstart of the tests stops after 24 steps, and an adapter of rank 8 moves such raw weights little.
@pytest.mark.parametrize(("name", "fall"), [("trained", 0.5), ("chatted", 0.5), ("adapted", 0.1)])
def test_the_loss_falls_over_more_than_twenty_steps(name: str, fall: float, request: pytest.FixtureRequest) -> None:
    losses = losses_of(request.getfixturevalue(name))
    assert len(losses) >= 20
    # Without a chat, four steps are one pass over all texts: the first and the last are of the same tokens.
    assert fmean(losses[-4:]) < fmean(losses[:4]) - fall, losses


@pytest.mark.parametrize("name", ["trained", "chatted", "adapted", "generated"])
def test_no_library_warns_of_the_export(name: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(name).warned == []


def test_the_saved_folder_holds_the_trained_weights_and_the_same_tokenizer(trained: Ran) -> None:
    saved = trained.folder / "runs/fine-tuned"
    export = trained.folder / "quickstart/export"
    text = "def f(x):\n\treturn x  # é <|im_end|> </s>\n"
    assert ids_of(saved, text) == ids_of(export, text)
    assert (saved / "tokenizer.model").read_bytes() == (export / "tokenizer.model").read_bytes()
    again = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    before = AutoModelForCausalLM.from_pretrained(export, dtype="float32").state_dict()
    for name, parameter in trained.names["model"].named_parameters():
        assert torch.equal(again[name], parameter), name
        assert not torch.equal(before[name], parameter), name


def test_only_what_the_assistant_says_carries_loss(chatted: Ran) -> None:
    tokenizer, trainer = chatted.names["tokenizer"], chatted.names["trainer"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            learned = ids[labels != -100]
            _, _, answer = tokenizer.decode(ids).partition("<|im_start|>assistant\n")
            assert tokenizer.decode(learned) == answer.partition("<|im_end|>")[0] + "<|im_end|>"
            assert learned[-1] == end


def test_a_chat_begins_like_a_document_and_its_symbols_are_single_tokens(chatted: Ran) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatted.folder / "runs/chat")
    question = [{"role": "user", "content": "?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids[:2] == [tokenizer.bos_token_id, start]
    assert ids.count(start) == 2
    assert ids.count(end) == 1
    assert tokenizer.decode(ids) == "<s><|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"


def test_generation_of_the_chat_model_ends_at_the_end_of_its_turn(chatted: Ran) -> None:
    model = AutoModelForCausalLM.from_pretrained(chatted.folder / "runs/chat")
    tokenizer = AutoTokenizer.from_pretrained(chatted.folder / "runs/chat")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id not in model.generation_config.eos_token_id


def test_the_adapter_alone_gives_the_logits_of_the_merged_model(adapted: Ran) -> None:
    from peft import PeftModel

    with chdir(adapted.folder), torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained("quickstart/export", dtype="float32")
        batch = adapted.names["batch"]
        without_BTV = base(**batch).logits
        with_BTV = PeftModel.from_pretrained(base, "runs/adapter").eval()(**batch).logits
        merged_BTV = AutoModelForCausalLM.from_pretrained("runs/merged")(**batch).logits
    torch.testing.assert_close(with_BTV, merged_BTV, rtol=1e-4, atol=1e-4)
    assert (merged_BTV - without_BTV).abs().max() > 0.1


def test_the_merged_folder_holds_the_tensors_of_an_export_and_no_others(adapted: Ran) -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(adapted.folder / "runs/merged", output_loading_info=True)
    assert {key: found for key, found in loading.items() if found} == {}
    assert not any("lora" in name for name in model.state_dict())


def test_the_pipeline_answers_a_question_as_the_assistant(generated: Ran) -> None:
    names = generated.names
    answer = names["chat"](names["question"], max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert answer[:-1] == names["question"]
    assert answer[-1]["role"] == "assistant"
    assert answer[-1]["content"].strip()
