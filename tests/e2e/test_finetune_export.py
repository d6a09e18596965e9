"""An exported folder is what transformers' own tools work on: training, generation, and the commands of its card."""

import math
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from pretrain.convert.export_hf import export_hf
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source

TEXTS = ["def f(x):\n    return x\n", "import os", "class A:\n    pass\n\n\nclass B(A):\n    pass\n", "x = 1  # one"]


@pytest.fixture
def exported(sentencepiece_model: Path, tmp_path: Path) -> Path:
    return export_hf(memory_source(sentencepiece_model), tmp_path / "exported").folder


def test_trainer_runs_three_steps_on_padded_batches(exported: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "tuned"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=[tokenizer(text + tokenizer.eos_token) for text in TEXTS],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    assert losses[2] < losses[0]
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []


def test_the_collator_masks_padding_and_keeps_the_end_of_text(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collator([tokenizer(text + tokenizer.eos_token) for text in TEXTS])
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        assert labels[length - 1] == ids[length - 1] == tokenizer.eos_token_id
        assert (labels[length:] == -100).all()
    assert (batch["attention_mask"] == 0).any()


def test_a_saved_fine_tuned_model_loads_again_with_the_same_tokenizer(exported: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    tokens_BT = torch.arange(40)[None]
    with torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
        assert torch.equal(loaded(tokens_BT).logits, model(tokens_BT).logits)


def test_pipeline_generates(exported: Path) -> None:
    generate = pipeline("text-generation", model=str(exported), device="cpu")
    result = generate("def f", max_new_tokens=5, do_sample=False)
    assert result[0]["generated_text"].startswith("def f")


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_commands_of_the_card_run(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(exported.parent)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "Once upon a time" in capsys.readouterr().out
