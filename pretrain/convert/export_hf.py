"""Export of a checkpoint as a verified Hugging Face folder.

1. refuse an unsupported model, tokenizer or set of parameters, and an output that exists
2. write weights, config and tokenizer into a staging folder beside the output
3. verify the logits and token ids of that folder against the run's (verify/)
4. write the model card and proof.json with the results
5. fsync and one atomic rename; on failure nothing is left behind
"""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain.config.schema import Config
from pretrain.convert.card.curve import training_history
from pretrain.convert.card.facts import CardFacts, ledger_of
from pretrain.convert.card.model_card import CARD_FILES, write_card
from pretrain.convert.families.choose import choose_family, config_json
from pretrain.convert.families.family import Family
from pretrain.convert.files.tokenizer_files import check_tokenizer, control_symbols, write_tokenizer_files
from pretrain.convert.files.weight_files import DTYPES, INDEX, WeightSource, refuse_unless_complete, write_weights
from pretrain.convert.origin import imported_from
from pretrain.convert.verify.logits import LogitProof, prove_logits
from pretrain.convert.verify.token_ids import TokenizerProof, prove_or_fix_tokenizer
from pretrain.convert.verify.transformers_library import import_transformers
from pretrain.errors import UserError
from pretrain.storage.files import publish_folder, staging_folder, sync
from tokenizer.models.base import COMPANION_FILES, SENTENCEPIECE_MODEL, TOKENIZER_JSON
from tokenizer.models.sentencepiece_to_hf import SpecialTokens

MAX_SHARD_BYTES = 2_000_000_000
# Files of an export. --overwrite never deletes a folder that holds anything else.
EXPORTED = (
    "*.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "proof.json",
    *CARD_FILES,
)
EXPORTED_TOKENIZER = (SENTENCEPIECE_MODEL, TOKENIZER_JSON, *COMPANION_FILES)


@dataclass(frozen=True)
class ExportReport:
    """The published folder and the results of its verification."""

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
        """Two lines for the terminal, a third if the tokenizer files were changed."""
        changed = f"\nchanged: {self.tokenizer.changed}" if self.tokenizer.changed else ""
        return (
            f"{self.folder}: {self.architecture} of step {self.step}, {self.parameters:,} parameters in "
            f"{len(self.weight_files)} {self.dtype} file{'s' if len(self.weight_files) > 1 else ''}, "
            f"{self.weight_bytes / 1e6:.1f} MB\n"
            f"verified: logits differ from transformers' by at most {self.logits.max_abs_difference:.1e}, "
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

    `dtype` is `fp32` or `bf16`. `tokenizer` is a file that replaces the run's own. With `overwrite`, an earlier export is
    replaced once the new one is verified. Peak memory: the largest tensor in fp32, and the logits of the verification.

    Raises UserError or DataError if the input cannot be exported, ExportError if weights are wrong or the verification
    fails. Nothing is published then.
    """
    started = time.monotonic()
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    import_transformers()
    _refuse_output(output, overwrite)
    family = choose_family(source.config.model)
    refuse_unless_complete(source)
    model_file = _tokenizer_file(source, tokenizer)
    with staging_folder(output) as folder:
        tensors = family.tensors(source.config.model)
        written = write_weights(source, folder, tensors, DTYPES[dtype], max_shard_bytes)
        # The training length, not max_seq_len: users take config.json's context as what the model can do.
        tokens = write_tokenizer_files(model_file, folder, max_tokens=source.config.data.seq_len)
        _write_configs(folder, source.config, family, dtype, tokens)
        report = ExportReport(
            folder=output,
            architecture=family.architecture,
            step=source.step,
            dtype=dtype,
            parameters=written.parameters,
            weight_files=written.files,
            weight_bytes=written.bytes,
            logits=prove_logits(folder, source, model_file, DTYPES[dtype]),
            tokenizer=prove_or_fix_tokenizer(folder, model_file),
            seconds=0.0,
        )
        write_card(folder, _card_facts(report, source, family, model_file, tokens))
        _write_json(folder / "proof.json", _proof(report.logits, report.tokenizer))
        _refuse_output(output, overwrite)  # again: it may have been created meanwhile
        _publish(folder, output)
    return replace(report, seconds=time.monotonic() - started)


def _tokenizer_file(source: WeightSource, tokenizer: Path | None) -> Path:
    model_file = tokenizer or source.tokenizer
    if model_file is None:
        raise UserError(
            "the run has no tokenizer, which the export needs",
            hint="pass the tokenizer file that encoded its shards: --tokenizer FILE",
        )
    check_tokenizer(model_file, source.config.model.vocab_size)
    return model_file


def _write_configs(folder: Path, config: Config, family: Family, dtype: str, tokens: SpecialTokens) -> None:
    ids = _token_ids(tokens)
    stored = config_json(family, config.model, config.data.seq_len, _torch_name(dtype), ids)
    _write_json(folder / "config.json", stored)
    _write_json(folder / "generation_config.json", {name: id_ for name, id_ in ids.items() if id_ is not None})


def _card_facts(
    report: ExportReport, source: WeightSource, family: Family, model_file: Path, tokens: SpecialTokens
) -> CardFacts:
    config = source.config
    known = getattr(source, "state", {}).get("imported_from")  # of any type in an untrusted checkpoint
    return CardFacts(
        name=report.folder.name,
        config=config,
        family=family.model_type,
        architecture=family.architecture,
        step=source.step,
        tokens=source.tokens,
        parameters=report.parameters,
        dtype=_torch_name(report.dtype),
        context=family.context(config.model, config.data.seq_len),
        control_symbols=control_symbols(model_file),
        logits=report.logits,
        tokenizer=report.tokenizer,
        padding=None if tokens.pad is None or tokens.pad[0] == tokens.eos[0] else tokens.pad[1],
        ledger=ledger_of(source),
        history=training_history(source),
        base_model=known if isinstance(known, str) else imported_from(config),
        averaged=getattr(source, "averaged", ()),
    )


def _torch_name(dtype: str) -> str:
    """Name of the type in config.json."""
    return str(DTYPES[dtype]).removeprefix("torch.")


def _refuse_output(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise UserError(f"{output} exists", hint="choose another folder or pass --overwrite")
    if not output.is_dir() or output.is_symlink():
        raise UserError(f"{output} is not a folder; --overwrite only replaces an earlier export")
    patterns = (*EXPORTED, *EXPORTED_TOKENIZER)
    foreign = sorted(entry.name for entry in output.iterdir() if not any(map(entry.match, patterns)))
    if foreign:
        raise UserError(
            f"{output} holds other files than those of an export: {', '.join(foreign[:5])}{' …' if len(foreign) > 5 else ''}",
            hint="move them away or choose another folder; --overwrite would delete them",
        )


def _proof(logits: LogitProof, tokenizer: TokenizerProof) -> dict[str, Any]:
    """Contents of proof.json: the results of the verification, for programs."""
    versions = {name: version(name) for name in ("pretrain-toolkit", "torch", "transformers", "sentencepiece")}
    return {"logits": {**asdict(logits), "bound": logits.bound}, "tokenizer": asdict(tokenizer), "versions": versions}


def _token_ids(tokens: SpecialTokens) -> dict[str, int | None]:
    """Ids by their keys of config.json; null for a missing token, so that transformers' default does not apply."""
    named = {"bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad}
    return {f"{name}_token_id": None if token is None else token[0] for name, token in named.items()}


def _publish(folder: Path, output: Path) -> None:
    for file in folder.iterdir():
        sync(file)
    publish_folder(folder, output)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
