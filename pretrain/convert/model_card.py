"""README.md of an exported folder: what the model is, how to load it, how to fine-tune it, what was checked."""

from pretrain.config.schema import Config
from pretrain.convert.proof import LogitProof, TokenizerProof

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A base language model, pretrained from scratch with pretrain-toolkit: {parameters:,} parameters, stored in {dtype}.
It continues text; it was not trained to follow instructions or to refuse anything.

| | |
|---|---|
| architecture | Llama (RMSNorm, rotary positions with theta {theta:g}, SwiGLU, {heads}) |
| shape | {layers} layers, width {width}, feed-forward {d_ff}, vocabulary {vocabulary}, {tied} embeddings |
| context | {context} tokens, the length it was trained on |
| training | {steps:,} optimizer steps, {tokens:,} tokens, in sequences of {seq_len} |
| data | {sources} |
| tokenizer | SentencePiece BPE with byte fallback, lossless but for `▁`, which decodes to a space |

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
batch = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**batch, max_new_tokens=20)[0]))
```

## Fine-tune

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="float32")
texts = ["A first text.", "A second one, longer than the first."]
dataset = [tokenizer(text + tokenizer.eos_token, truncation=True) for text in texts]
trainer = Trainer(
    model=model,
    args=TrainingArguments("finetuned", max_steps=3, per_device_train_batch_size=2, report_to=[]),
    train_dataset=dataset,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
```

The padding token is not the end-of-text token, so the collator masks the one and keeps the other. TRL and PEFT take the
folder as it is.

These control symbols are recognized in text, for chat templates: {controls}.
Encode text that you do not trust with `tokenizer(text, split_special_tokens=True)`.

## Checked when this folder was made

- transformers loaded every tensor: none missing, surplus or mismatched.
- Logits against the code that trained the model, both in fp32 on {positions} positions: largest difference
  {difference:.2g} where the largest logit is {largest:.3g}.
- Token ids and decoded text against SentencePiece on {strings} strings ({string_tokens:,} tokens): no difference.

## License

None is stated here. The owner of the weights chooses one; note that the training data may restrict the choice.
"""


def model_card(
    name: str,
    config: Config,
    *,
    step: int,
    tokens: int,
    parameters: int,
    dtype: str,
    context: int,
    control_symbols: list[str],
    logits: LogitProof,
    tokenizer: TokenizerProof,
) -> str:
    """Markdown of the card. `name` is the folder's; `step` counts optimizer steps, `tokens` what it was trained on."""
    model = config.model
    grouped = model.n_kv_heads != model.n_heads
    return CARD.format(
        name=name,
        parameters=parameters,
        dtype=dtype,
        theta=model.rope_theta,
        heads=f"{model.n_heads} query and {model.n_kv_heads} key/value heads" if grouped else f"{model.n_heads} heads",
        layers=model.n_layers,
        width=model.d_model,
        d_ff=model.d_ff,
        vocabulary=model.vocab_size,
        tied="tied" if model.tie_embeddings else "separate input and output",
        context=context,
        steps=step,
        seq_len=config.data.seq_len,
        tokens=tokens,
        sources=", ".join(f"{source} (weight {entry.weight:g})" for source, entry in config.data.train.items())
        or "not recorded",
        controls=" ".join(f"`{symbol}`" for symbol in control_symbols),
        positions=logits.positions,
        difference=logits.max_abs_difference,
        largest=logits.max_abs_logit,
        strings=tokenizer.strings,
        string_tokens=tokenizer.tokens,
    )
