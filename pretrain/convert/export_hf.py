"""A checkpoint → a Hugging Face folder that has proved itself.

1. refuse what cannot be exported: family, parameters, tokenizer, an output that exists
2. weights, shard by shard, config and tokenizer into a staging folder beside the output
3. the proof: transformers and SentencePiece against what lies there (proof.py)
4. model card with the figures of the proof
5. fsync, then one rename. Until then nothing is to be seen at the output; on failure nothing is left behind
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain.convert.card.curve import training_history
from pretrain.convert.card.facts import CardFacts, ledger_of
from pretrain.convert.card.model_card import CARD_FILES, write_card
from pretrain.convert.families.choose import choose_family, config_json
from pretrain.convert.files.tokenizer_files import check_tokenizer, control_symbols, write_tokenizer_files
from pretrain.convert.files.weight_files import DTYPES, INDEX, WeightSource, refuse_unless_complete, write_weights
from pretrain.convert.origin import imported_from
from pretrain.convert.verify.logits import LogitProof, prove_logits
from pretrain.convert.verify.token_ids import TokenizerProof, settle_tokenizer
from pretrain.convert.verify.transformers_library import import_transformers
from pretrain.errors import UserError
from pretrain.storage.files import publish_folder, staging_folder, sync
from tokenizer.models.base import BESIDE, SENTENCEPIECE_MODEL, TOKENIZER_JSON
from tokenizer.models.sentencepiece_to_hf import SpecialTokens

MAX_SHARD_BYTES = 2_000_000_000
# What an export writes. A folder with anything else in it is never deleted.
EXPORTED = (
    "*.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "proof.json",
    *CARD_FILES,
)
EXPORTED_TOKENIZER = (SENTENCEPIECE_MODEL, TOKENIZER_JSON, *BESIDE)


@dataclass(frozen=True)
class ExportReport:
    """What was published, and the figures that let it be."""

    folder: Path
    architecture: str
    step: int
    dtype: str
    parameters: int
    weight_files: tuple[str, ...]
    weight_bytes: int
    logits: LogitProof
    tokenizer: TokenizerProof
    seconds: float

    def summary(self) -> str:
        """Two lines for a person, a third where the tokenizer's files are not quite the run's."""
        changed = f"\nchanged: {self.tokenizer.changed}" if self.tokenizer.changed else ""
        return (
            f"{self.folder}: {self.architecture} of step {self.step}, {self.parameters:,} parameters in "
            f"{len(self.weight_files)} {self.dtype} file{'s' if len(self.weight_files) > 1 else ''}, "
            f"{self.weight_bytes / 1e6:.1f} MB\n"
            f"proved: logits differ from transformers' by {self.logits.max_abs_difference:.1e} at most, "
            f"{self.tokenizer.strings} of {self.tokenizer.strings} texts tokenize as in {self.tokenizer.reference}{changed}"
        )


def export_hf(
    source: WeightSource,
    output: Path,
    *,
    dtype: str = "fp32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    tokenizer: Path | None = None,
) -> ExportReport:
    """Write `source` to the folder `output`, which transformers, TRL, PEFT, vLLM and llama.cpp's converter can load.

    `dtype` is `fp32` or `bf16`, that of the stored weights. `tokenizer` is a file to take in place of the one that was
    saved with the run. With `overwrite`, an earlier export at `output` is replaced once the new one is proved. The memory
    that it takes is that of the largest tensor in fp32, and of the proof's logits.

    Raises UserError where the input cannot be exported (nothing was started), ExportError where the weights are not
    what they should be or the proof fails (nothing was published).
    """
    started = time.monotonic()
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    config = source.config
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    import_transformers()
    _refuse_output(output, overwrite)
    family = choose_family(config.model)
    refuse_unless_complete(source)
    model_file = tokenizer or source.tokenizer
    if model_file is None:
        raise UserError(
            "the run has no tokenizer, and without one nobody can use the model",
            hint="name the tokenizer file that its shards were made with: --tokenizer FILE",
        )
    check_tokenizer(model_file, config.model.vocab_size)
    # The model may be made for more positions than it was trained on; users take this number as what it can do.
    context = config.data.seq_len

    known = getattr(source, "state", {}).get("imported_from")  # of a stranger's checkpoint it may be anything
    with staging_folder(output) as folder:
        written = write_weights(source, folder, family.tensors(config.model), DTYPES[dtype], max_shard_bytes)
        tokens = write_tokenizer_files(model_file, folder, max_tokens=context)
        stored_as = str(DTYPES[dtype]).removeprefix("torch.")
        ids = _token_ids(tokens)
        _write_json(folder / "config.json", config_json(family, config.model, context, stored_as, ids))
        named = {name: token for name, token in ids.items() if token is not None}
        _write_json(folder / "generation_config.json", named)
        logits = prove_logits(folder, source, model_file, DTYPES[dtype])
        compared = settle_tokenizer(folder, model_file)
        facts = CardFacts(
            name=output.name,
            config=config,
            family=family.model_type,
            architecture=family.architecture,
            step=source.step,
            tokens=source.tokens,
            parameters=written.parameters,
            dtype=stored_as,
            context=family.context(config.model, context),
            control_symbols=control_symbols(model_file),
            logits=logits,
            tokenizer=compared,
            padding=None if tokens.pad is None or tokens.pad[0] == tokens.eos[0] else tokens.pad[1],
            ledger=ledger_of(source),
            history=training_history(source),
            base_model=known if isinstance(known, str) else imported_from(config),
            averaged=getattr(source, "averaged", ()),
        )
        write_card(folder, facts)
        _write_json(folder / "proof.json", _proof(logits, compared))
        _refuse_output(output, overwrite)  # once more: something may have come there meanwhile
        _publish(folder, output)
    return ExportReport(
        folder=output,
        architecture=family.architecture,
        step=source.step,
        dtype=dtype,
        parameters=written.parameters,
        weight_files=written.files,
        weight_bytes=written.bytes,
        logits=logits,
        tokenizer=compared,
        seconds=time.monotonic() - started,
    )


def _refuse_output(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise UserError(f"{output} exists", hint="choose another folder, or replace it with --overwrite")
    if not output.is_dir() or output.is_symlink():
        raise UserError(f"{output} is not a folder, and --overwrite only replaces an earlier export")
    patterns = (*EXPORTED, *EXPORTED_TOKENIZER)
    foreign = sorted(entry.name for entry in output.iterdir() if not any(map(entry.match, patterns)))
    if foreign:
        raise UserError(
            f"{output} holds what no export writes: {', '.join(foreign[:5])}{' …' if len(foreign) > 5 else ''}",
            hint="--overwrite would delete it; move it away or choose another folder",
        )


def _proof(logits: LogitProof, tokenizer: TokenizerProof) -> dict[str, Any]:
    """The figures of the proof, for programs; the model card has them for people."""
    versions = {name: version(name) for name in ("pretrain-toolkit", "torch", "transformers", "sentencepiece")}
    return {"logits": {**asdict(logits), "bound": logits.bound}, "tokenizer": asdict(tokenizer), "versions": versions}


def _token_ids(tokens: SpecialTokens) -> dict[str, int | None]:
    """As config.json names them; null where there is no such token, so that no default of the library takes its place."""
    named = {"bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad}
    return {f"{name}_token_id": None if token is None else token[0] for name, token in named.items()}


def _publish(folder: Path, output: Path) -> None:
    for file in folder.iterdir():
        sync(file)
    publish_folder(folder, output)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
