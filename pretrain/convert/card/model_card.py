"""README.md of an exported folder: model, training data, evaluation, usage, verification.

The training curve and the configuration are separate files. Names from configurations and corpora are escaped.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.convert.card.curve import CURVE, write_curve
from pretrain.convert.card.facts import CardFacts, describe_shape, recipe
from pretrain.convert.card.markdown import code_span, escaped, table

CARD, RECIPE = "README.md", "pretrain_config.yaml"
CARD_FILES = (CARD, CURVE, RECIPE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)

FINE_TUNE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name}, dtype="float32")
{padding}texts = ["A first text.", "A second one, longer than the first."]
dataset = [tokenizer(text + tokenizer.eos_token, truncation=True) for text in texts]
trainer = Trainer(
    model=model,
    args=TrainingArguments("finetuned", max_steps=3, per_device_train_batch_size=2, report_to=[]),
    train_dataset=dataset,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
```
"""
NO_PADDING = "tokenizer.pad_token = tokenizer.eos_token  # the tokenizer has no padding token of its own\n"


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write CARD_FILES into `folder`; the curve only if losses were logged, the recipe only if the model was trained."""
    picture = None if facts.history is None else write_curve(folder, facts.history)
    if facts.step:
        (folder / RECIPE).write_text(recipe(facts.config), encoding="utf-8")
    (folder / CARD).write_text(model_card(facts, picture), encoding="utf-8")


def model_card(facts: CardFacts, picture: str | None = None) -> str:
    """Markdown of the card; `picture` is the file name of the training curve."""
    sections = [
        _front_matter(facts),
        f"# {escaped(facts.name)}",
        _opening(facts),
        _shape(facts),
        "## Training",
        _training(facts),
        f"![Training and validation loss by step]({picture})" if picture else "",
        _data(facts) if facts.step else "",
        _evaluation(facts),
        f"The configuration is in [{RECIPE}]({RECIPE})." if facts.step else "",
        "## Load",
        _load(facts),
        "## Fine-tune",
        _fine_tune(facts),
        "## Verification of this export",
        _checks(facts),
        "## License",
        "Not stated: the owner of the weights chooses it. The training data may restrict the choice.",
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> str:
    """YAML metadata for the Hub. JSON strings are valid YAML."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if facts.base_model is not None and _HUB_NAME.fullmatch(facts.base_model):
        lines.append(f"base_model: {json.dumps(facts.base_model)}")
    tags = ["pretrain-toolkit", facts.family]
    return "\n".join(["---", *lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def _opening(facts: CardFacts) -> str:
    begun = "pretrained from scratch with pretrain-toolkit"
    if facts.initial_weights is not None:
        begun = f"pretrained with pretrain-toolkit, starting from {escaped(facts.initial_weights)}"
    if not facts.step:
        begun = f"converted with pretrain-toolkit{f' from {escaped(facts.initial_weights)}' if facts.initial_weights else ''}"
    return (
        f"A base language model, {begun}: {facts.parameters:,} parameters, stored in {facts.dtype}. It continues text; "
        "it was not trained to follow instructions or to refuse anything."
    )


def _shape(facts: CardFacts) -> str:
    model = facts.config.model
    tied = "tied" if model.tie_embeddings else "separate input and output"
    pieces = "as it was imported, a tokenizer.json"
    if facts.tokenizer.reference == "SentencePiece":
        pieces = "SentencePiece BPE with byte fallback, lossless but for `▁`, which decodes to a space"
    rows = [
        ("architecture", f"{escaped(facts.architecture)}: {'; '.join(map(escaped, describe_shape(model)))}"),
        (
            "shape",
            f"{model.n_layers} layers, width {model.d_model}, feed-forward {model.d_ff}, vocabulary {model.vocab_size}, "
            f"{tied} embeddings",
        ),
        ("context", f"{facts.context} tokens"),
        ("tokenizer", pieces),
    ]
    return table(("", ""), rows, "ll")


def _training(facts: CardFacts) -> str:
    config = facts.config
    if not facts.step:
        return "None with this toolkit: the weights are imported or randomly initialized."
    mean = ""
    if len(facts.averaged) > 1:
        mean = f" The weights are the mean of steps {', '.join(map(str, facts.averaged))}."
    return (
        f"{facts.step:,} optimizer steps, {facts.tokens:,} tokens, in sequences of {config.data.seq_len} and batches of "
        f"{config.batch.global_batch_size}; AdamW, peak learning rate {config.optimizer.lr:g} ({config.schedule.kind} "
        f"schedule, {config.schedule.warmup_steps} steps of warmup), weight decay {config.optimizer.weight_decay:g}, "
        f"{config.engine.precision}{'' if config.engine.precision == 'fp32' else ' with fp32 master weights'}.{mean}"
    )


def _data(facts: CardFacts) -> str:
    if not facts.ledger:
        names = ", ".join(escaped(name) for name in facts.config.data.train)
        return f"### Data\n\nSources: {names or 'not recorded'}. How many tokens of each were read is not recorded."
    total = sum(entry["tokens"] for entry in facts.ledger.values()) or 1.0
    rows = [
        (escaped(name), f"{entry['tokens']:,.0f}", f"{entry['tokens'] / total:.1%}", f"{entry['epochs']:.3g}")
        for name, entry in sorted(facts.ledger.items(), key=lambda item: -item[1]["tokens"])
    ]
    return "### Data\n\n" + table(("source", "tokens", "share", "epochs"), rows, "lrrr")


def _evaluation(facts: CardFacts) -> str:
    """The last evaluation up to the step: overall, and by source if there are several."""
    if facts.history is None or not facts.history.evaluations:
        return ""
    last = facts.history.evaluations[-1]
    names = [key.removeprefix("loss/") for key in last if key.startswith("loss/")]
    rows = [("all" if names else "held-out text", *_scores(last, ""))]
    rows += [(escaped(name), *_scores(last, f"/{name}")) for name in names]
    sources = ", ".join(escaped(name) for name in facts.config.data.valid)
    said = f"Held-out sequences of {sources or 'the validation sources'} after step {last['step']:,}."
    mean = " These are losses of that step, not of the averaged weights." if len(facts.averaged) > 1 else ""
    head = ("source", "loss (nats per token)", "perplexity", "bits per byte", "tokens right")
    return f"### Evaluation\n\n{said}{mean}\n\n{table(head, rows, 'lrrrr')}"


def _scores(values: Mapping[str, Any], suffix: str) -> tuple[str, str, str, str]:
    """Cells from the keys of a line of evaluations.jsonl that end in `suffix`; a dash for a missing value."""
    loss, bits, right = (_number(values.get(f"{key}{suffix}")) for key in ("loss", "bits_per_byte", "accuracy"))
    return (
        "–" if loss is None else f"{loss:.4f}",
        "–" if loss is None or loss > 50 else f"{math.exp(loss):,.4g}",
        "–" if bits is None else f"{bits:.4f}",
        "–" if right is None else f"{right:.1%}",
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _load(facts: CardFacts) -> str:
    name = json.dumps(facts.name)
    return f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})
batch = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**batch, max_new_tokens=20)[0]))
```"""


def _fine_tune(facts: CardFacts) -> str:
    script = FINE_TUNE.format(name=json.dumps(facts.name), padding="" if facts.padding else NO_PADDING)
    said = "TRL and PEFT load the folder unchanged."
    if facts.padding:
        said = "The padding token differs from the end-of-text token, so the collator masks padding only. " + said
    symbols = " ".join(map(code_span, facts.control_symbols))
    if symbols:
        said += f"\n\nThese symbols are recognized in text, for chat templates: {symbols}. "
        said += "Encode untrusted text with `tokenizer(text, split_special_tokens=True)`."
    return f"{script}\n{said}"


def _checks(facts: CardFacts) -> str:
    logits, tokenizer = facts.logits, facts.tokenizer
    return "\n".join(
        [
            "- transformers loaded every tensor: none missing, surplus or mismatched.",
            f"- Logits against the code that trained the model, both in fp32 on {logits.positions} positions: largest "
            f"difference {logits.max_abs_difference:.2g} where the largest logit is {logits.max_abs_logit:.3g}.",
            f"- Token ids and decoded text against {tokenizer.reference} on {tokenizer.strings} strings "
            f"({tokenizer.tokens:,} tokens): no difference.",
            *([f"- Changed in the tokenizer's files: {escaped(tokenizer.changed)}."] if tokenizer.changed else []),
        ]
    )
