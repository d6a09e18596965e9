"""A checkpoint → a Hugging Face folder that has proved itself.

1. refuse what cannot be exported: family, parameters, tokenizer, an output that exists
2. weights, shard by shard, config and tokenizer into a staging folder beside the output
3. the proof: transformers and SentencePiece against what lies there (proof.py)
4. model card with the figures of the proof
5. fsync, then one rename. Until then nothing is to be seen at the output; on failure nothing is left behind
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain.convert.llama import llama_config, llama_name, refuse_unless_llama
from pretrain.convert.model_card import model_card
from pretrain.convert.proof import LogitProof, TokenizerProof, import_transformers, prove_logits, prove_tokenizer
from pretrain.convert.tokenizer_json import (
    SpecialTokens,
    control_symbols,
    read_model,
    refuse_unless_exportable,
    write_tokenizer,
)
from pretrain.convert.weights import DTYPES, WeightSource, refuse_unless_complete, write_weights
from pretrain.errors import DataError, UserError

MAX_SHARD_BYTES = 5_000_000_000
# What an export writes. A folder with anything else in it is never deleted.
EXPORTED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "proof.json",
    "README.md",
)
EXPORTED_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


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
        """Two lines for a person."""
        return (
            f"{self.folder}: {self.architecture} of step {self.step}, {self.parameters:,} parameters in "
            f"{len(self.weight_files)} {self.dtype} file{'s' if len(self.weight_files) > 1 else ''}, "
            f"{self.weight_bytes / 1e6:.1f} MB\n"
            f"proved: logits differ from transformers' by {self.logits.max_abs_difference:.1e} at most, "
            f"{self.tokenizer.strings} of {self.tokenizer.strings} texts tokenize as in SentencePiece"
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

    `dtype` is `fp32` or `bf16`, that of the stored weights. `tokenizer` is a SentencePiece model to take in place of
    the one that was saved with the run. With `overwrite`, an earlier export at `output` is replaced once the new one
    is proved.

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
    refuse_unless_llama(config.model)
    refuse_unless_complete(source)
    model_file = _checked_tokenizer(tokenizer or source.tokenizer, config.model.vocab_size)
    # The model may be made for more positions than it was trained on; users take this number as what it can do.
    context = config.data.seq_len

    with _staging(output) as folder:
        written = write_weights(source, folder, llama_name, DTYPES[dtype], max_shard_bytes)
        tokens = write_tokenizer(model_file, folder, max_tokens=context)
        stored_as = str(DTYPES[dtype]).removeprefix("torch.")
        _write_json(folder / "config.json", llama_config(config.model, tokens, context, stored_as))
        _write_json(folder / "generation_config.json", _generation_config(tokens))
        logits = prove_logits(folder, source, model_file, DTYPES[dtype])
        compared = prove_tokenizer(folder, model_file)
        card = model_card(
            output.name,
            config,
            step=source.step,
            tokens=source.tokens,
            parameters=written.parameters,
            dtype=stored_as,
            context=context,
            control_symbols=control_symbols(read_model(model_file)),
            logits=logits,
            tokenizer=compared,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_json(folder / "proof.json", _proof(logits, compared))
        _publish(folder, output)
    return ExportReport(
        folder=output,
        architecture="LlamaForCausalLM",
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


def _checked_tokenizer(model_file: Path | None, vocab_size: int) -> Path:
    if model_file is None:
        raise UserError(
            "the run has no tokenizer, and without one nobody can use the model",
            hint="name the SentencePiece model that its shards were made with: --tokenizer FILE",
        )
    model = read_model(model_file)
    refuse_unless_exportable(model, str(model_file))
    if len(model.pieces) > vocab_size:
        raise DataError(f"the tokenizer {model_file} has {len(model.pieces)} pieces, the model only {vocab_size} rows")
    return model_file


def _proof(logits: LogitProof, tokenizer: TokenizerProof) -> dict[str, Any]:
    """The figures of the proof, for programs; the model card has them for people."""
    versions = {name: version(name) for name in ("pretrain-toolkit", "torch", "transformers", "sentencepiece")}
    return {"logits": {**asdict(logits), "bound": logits.bound}, "tokenizer": asdict(tokenizer), "versions": versions}


def _generation_config(tokens: SpecialTokens) -> dict[str, Any]:
    return {"bos_token_id": tokens.bos[0], "eos_token_id": tokens.eos[0], "pad_token_id": tokens.pad[0]}


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A folder on the output's file system, so that publishing is a rename. Removed unless it was renamed."""
    folder = output.with_name(f".{output.name}.staging-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Ours to delete: a process with this id has died here before (in a container every first process has the same).
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    for file in folder.iterdir():
        _fsync(file)
    _fsync(folder)
    replaced = output.with_name(f".{output.name}.replaced-{os.getpid()}")
    if output.exists():
        output.rename(replaced)
    try:
        folder.rename(output)
    except OSError:
        if replaced.exists():
            replaced.rename(output)
        raise
    _fsync(output.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
