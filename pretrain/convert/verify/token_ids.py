"""Verification that the exported tokenizer yields the training ids.

    tokenizer.model   SentencePiece, our loader of the written tokenizer.json, and AutoTokenizer
    tokenizer.json    our loader of the run's file, and AutoTokenizer on the copy

transformers chooses the tokenizer class by tokenizer_config.json and config.json. Some classes keep only vocabulary and
merges of a tokenizer.json and build normalizer and pre-tokenizer as their family has them. A tokenizer of another family
then gives other ids, without a warning.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.convert.files.tokenizer_files import control_symbols
from pretrain.convert.verify.transformers_library import quiet_transformers
from pretrain.errors import ExportError
from tokenizer.models.base import TOKENIZER_JSON, is_tokenizer_json, read_object, read_tokenizer, special_token
from tokenizer.models.hf_json import SPECIAL_NAMES, HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.sentencepiece import load_sentencepiece
from tokenizer.models.stress_texts import stress_texts

FAILURES_LISTED = 3
PLAIN_CLASS = "PreTrainedTokenizerFast"  # of transformers 4.57 and 5: uses tokenizer.json unchanged


@dataclass(frozen=True)
class TokenizerProof:
    """Number of strings compared with the `reference`; `spelling_control` of them spell a control symbol.

    `changed` describes a change to the run's tokenizer files, with its reason; empty if there is none.
    """

    strings: int
    spelling_control: int
    tokens: int
    reference: str = "SentencePiece"
    changed: str = ""


def prove_tokenizer(folder: Path, model_file: Path) -> TokenizerProof:
    """Compare the folder's AutoTokenizer with the run's tokenizer, both directions. Raises ExportError.

    All texts are encoded with `split_special_tokens=True` (tokenizer/models/sentencepiece_to_hf.py explains why); texts
    that spell no control symbol also with the defaults.
    """
    controls = control_symbols(model_file)
    texts = stress_texts(controls)
    with quiet_transformers() as transformers:
        theirs = _auto_tokenizer(transformers, folder)
        if is_tokenizer_json(model_file):
            reference = "tokenizers"
            tokens, failures = _compare_json(theirs, model_file, texts)
        else:
            reference = "SentencePiece"
            tokens, failures = _compare_sentencepiece(theirs, folder, model_file, texts, controls)
    if failures:
        listed = "\n".join(f"  - {failure}" for failure in failures[:FAILURES_LISTED])
        raise ExportError(
            f"the exported tokenizer differs from {reference} in {len(failures)} comparisons of {len(texts)} "
            f"strings:\n{listed}",
            hint=f"transformers {transformers.__version__} loads it as {type(theirs).__name__}; "
            f'"tokenizer_class": "{PLAIN_CLASS}" in tokenizer_config.json uses tokenizer.json unchanged'
            if reference == "tokenizers"
            else None,
        )
    spelling = sum(any(control in text for control in controls) for text in texts)
    return TokenizerProof(len(texts), spelling, tokens, reference)


def prove_or_fix_tokenizer(folder: Path, model_file: Path) -> TokenizerProof:
    """`prove_tokenizer`; if it fails, once more with PLAIN_CLASS in the folder's tokenizer_config.json.

    Raises the first ExportError if that fails too.
    """
    try:
        return prove_tokenizer(folder, model_file)
    except ExportError as error:
        config_file = folder / "tokenizer_config.json"
        config = read_object(config_file.read_bytes(), str(config_file))
        stated = config.get("tokenizer_class")
        if not is_tokenizer_json(model_file) or stated == PLAIN_CLASS:
            raise
        config_file.write_text(
            json.dumps({**config, "tokenizer_class": PLAIN_CLASS}, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        try:
            proof = prove_tokenizer(folder, model_file)
        except ExportError:
            raise error from None
        first = error.message.partition("\n")[2].partition("\n")[0].removeprefix("  - ") or error.message
        return replace(proof, changed=f"tokenizer_class: {stated} → {PLAIN_CLASS}, because it gives other {first}")


def _auto_tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # A wrong file can raise any error in transformers.
        raise ExportError(f"transformers cannot load the exported tokenizer: {str(error)[:500]}") from error


def _compare_sentencepiece(
    theirs: Any, folder: Path, model_file: Path, texts: list[str], controls: list[str]
) -> tuple[int, list[str]]:
    """Number of tokens compared, and the differences of transformers and of our own loader from SentencePiece."""
    processor = load_sentencepiece(model_file.read_bytes(), str(model_file))
    expected = {name: getattr(processor, f"{name}_id")() for name in SPECIAL_NAMES}
    _check_special_ids(theirs, expected, "SentencePiece's")
    ours = load_tokenizer(folder / TOKENIZER_JSON)
    tokens, failures = 0, []
    if (ours.bos_id(), ours.eos_id(), ours.pad_id()) != (expected["bos"], expected["eos"], expected["pad"]):
        failures.append("ids of the special tokens in our own loader of tokenizer.json")
    for text in texts:
        ids = processor.encode(text)
        tokens += len(ids)
        spells = any(control in text for control in controls)
        failures.extend(_model_differences(text, ids, theirs, processor, spells))
        if ours.encode(text) != ids or ours.decode(ids) != processor.decode(ids):
            failures.append(f"ids of {text[:60]!r} in our own loader of tokenizer.json")
    return tokens, failures


def _model_differences(text: str, ids: list[int], theirs: Any, processor: Any, spells_control: bool) -> Iterator[str]:
    if theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids != ids:
        yield f"ids of {text[:60]!r} with split_special_tokens=True"
    if not spells_control:
        with_start = [processor.bos_id(), *ids]
        if theirs(text, split_special_tokens=False).input_ids != with_start:
            yield f"ids of {text[:60]!r}"
    decoded = theirs.decode(ids, skip_special_tokens=False)
    # SentencePiece stores a space as ▁, so a ▁ of the text decodes to a space; transformers must do the same.
    if decoded != processor.decode(ids) or decoded != text.replace("▁", " "):
        yield f"decoding the ids of {text[:60]!r} gives {decoded[:60]!r}"


def _compare_json(theirs: Any, model_file: Path, texts: list[str]) -> tuple[int, list[str]]:
    """Number of tokens compared, and the differences of transformers from the run's tokenizer.json."""
    tokenizer = load_tokenizer(model_file)
    assert isinstance(tokenizer, HFTokenizer)
    files = read_tokenizer(model_file)
    spelt = {name for name in SPECIAL_NAMES if isinstance(special_token(files, name, str(model_file)), str)}
    _check_special_ids(
        theirs, {name: tokenizer.special_ids[name] for name in SPECIAL_NAMES if name in spelt}, "those of the run"
    )
    before, after = _framing(theirs, tokenizer)
    tokens, failures = 0, []
    for text in texts:
        ids = tokenizer.encode(text)
        tokens += len(ids)
        with_symbols = _with_symbols(tokenizer, text)
        for found, expected, how in (
            (theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids, ids, "split_special_tokens"),
            (theirs(text, split_special_tokens=False).input_ids, [*before, *with_symbols, *after], "special tokens"),
        ):
            if found != expected:
                failures.append(f"ids of {text[:60]!r} with {how}: {_shown(found)}, and the run has {_shown(expected)}")
        decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if decoded != tokenizer.decode(ids):
            failures.append(
                f"decoding the ids of {text[:60]!r} gives {decoded[:60]!r}, not {tokenizer.decode(ids)[:60]!r}"
            )
    return tokens, failures


def _with_symbols(tokenizer: HFTokenizer, text: str) -> list[int]:
    """Ids with the spellings of special tokens matched, as chat templates need."""
    tokenizer.backend.encode_special_tokens = False
    try:
        return tokenizer.encode(text)
    finally:
        tokenizer.backend.encode_special_tokens = True


def _framing(theirs: Any, tokenizer: HFTokenizer) -> tuple[list[int], list[int]]:
    """Expected ids before and after each text: those of the file's own template if transformers applies it, else BOS."""
    ids, own, inner = theirs("a").input_ids, tokenizer.backend.encode("a").ids, tokenizer.encode("a")
    if ids == own:
        for start in range(len(own) - len(inner) + 1):
            if own[start : start + len(inner)] == inner:
                return own[:start], own[start + len(inner) :]
    return ([tokenizer.bos_id()] if tokenizer.bos_id() >= 0 else []), []


def _check_special_ids(theirs: Any, expected: dict[str, int], whose: str) -> None:
    found = {name: getattr(theirs, f"{name}_token_id") for name in expected}
    if found != expected:
        raise ExportError(f"the exported tokenizer's special ids are {found}, {whose} {expected}")


def _shown(ids: list[int]) -> str:
    return f"{ids[:8]}{' …' if len(ids) > 8 else ''}"
