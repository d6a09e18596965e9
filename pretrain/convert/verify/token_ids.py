"""That an exported folder's tokenizer gives the ids that the model was trained on, before the folder is published.

    tokenizer.model   SentencePiece, our loader of the written tokenizer.json, and AutoTokenizer
    tokenizer.json    our loader of the file that the run had, and AutoTokenizer on the copy

transformers chooses a class by tokenizer_config.json and config.json, and some classes keep nothing of a tokenizer.json
but its vocabulary and merges: they make the normalizer and the pre-tokenizer anew, as their family has them. For a
tokenizer of that family nothing changes; for another one all ids may, which nobody would be told of.
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
PLAIN_CLASS = "PreTrainedTokenizerFast"  # of transformers: uses a tokenizer.json as it is, in 4.57 and in 5


@dataclass(frozen=True)
class TokenizerProof:
    """Strings compared with the `reference`; `spelling_control` of them spell a control symbol.

    `changed` says what was written otherwise than in the run's files, and why; empty where nothing was.
    """

    strings: int
    spelling_control: int
    tokens: int
    reference: str = "SentencePiece"
    changed: str = ""


def prove_tokenizer(folder: Path, model_file: Path) -> TokenizerProof:
    """Compare the folder's AutoTokenizer with the run's tokenizer, both directions. Raises ExportError.

    Texts that spell no control symbol are encoded as users do; the others, and all of them once more, with
    `split_special_tokens=True` (tokenizer_json.py says why).
    """
    controls = control_symbols(model_file)
    texts = stress_texts(controls)
    with quiet_transformers() as transformers:
        theirs = _auto_tokenizer(transformers, folder)
        if is_tokenizer_json(model_file):
            reference = "tokenizers"
            tokens, failures = _compare_definition(theirs, model_file, texts)
        else:
            reference = "SentencePiece"
            tokens, failures = _compare_model(theirs, folder, model_file, texts, controls)
    if failures:
        listed = "\n".join(f"  - {failure}" for failure in failures[:FAILURES_LISTED])
        raise ExportError(
            f"the exported tokenizer differs from {reference} in {len(failures)} comparisons over {len(texts)} "
            f"strings:\n{listed}",
            hint=f"transformers {transformers.__version__} loads it as {type(theirs).__name__}; "
            f'"tokenizer_class": "{PLAIN_CLASS}" in tokenizer_config.json takes tokenizer.json as it is'
            if reference == "tokenizers"
            else None,
        )
    spelling = sum(any(control in text for control in controls) for text in texts)
    return TokenizerProof(len(texts), spelling, tokens, reference)


def settle_tokenizer(folder: Path, model_file: Path) -> TokenizerProof:
    """`prove_tokenizer`, if need be with the class in the folder's tokenizer_config.json that takes a tokenizer.json as it is.

    All else stays as it was copied. Raises ExportError, of the folder as it was, where that does not help.
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
        return replace(proof, changed=f"tokenizer_class: {stated} → {PLAIN_CLASS}, since it gives other {first}")


def _auto_tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Whatever a class of theirs stumbles over: the folder is not what it has to be.
        raise ExportError(f"transformers cannot load the exported tokenizer: {str(error)[:500]}") from error


def _compare_model(
    theirs: Any, folder: Path, model_file: Path, texts: list[str], controls: list[str]
) -> tuple[int, list[str]]:
    """How many tokens were compared, and what differs from SentencePiece: in transformers, and in our own loader."""
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
    # SentencePiece stores a space as ▁, so that a ▁ of the text itself comes back as a space: theirs must do the same.
    if decoded != processor.decode(ids) or decoded != text.replace("▁", " "):
        yield f"decoding the ids of {text[:60]!r} gives {decoded[:60]!r}"


def _compare_definition(theirs: Any, model_file: Path, texts: list[str]) -> tuple[int, list[str]]:
    """How many tokens were compared, and where transformers differs from the tokenizer.json of the run."""
    codec = load_tokenizer(model_file)
    assert isinstance(codec, HFTokenizer)
    files = read_tokenizer(model_file)
    spelt = {name for name in SPECIAL_NAMES if isinstance(special_token(files, name, str(model_file)), str)}
    _check_special_ids(
        theirs, {name: codec.special_ids[name] for name in SPECIAL_NAMES if name in spelt}, "those of the run"
    )
    before, after = _framing(theirs, codec)
    tokens, failures = 0, []
    for text in texts:
        ids = codec.encode(text)
        tokens += len(ids)
        with_symbols = _with_symbols(codec, text)
        for found, expected, how in (
            (theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids, ids, "split_special_tokens"),
            (theirs(text, split_special_tokens=False).input_ids, [*before, *with_symbols, *after], "special tokens"),
        ):
            if found != expected:
                failures.append(f"ids of {text[:60]!r} with {how}: {_shown(found)}, and the run has {_shown(expected)}")
        decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if decoded != codec.decode(ids):
            failures.append(f"decoding the ids of {text[:60]!r} gives {decoded[:60]!r}, not {codec.decode(ids)[:60]!r}")
    return tokens, failures


def _with_symbols(codec: HFTokenizer, text: str) -> list[int]:
    """Ids where special tokens that are spelt in the text are matched, as chat templates need it."""
    codec.backend.encode_special_tokens = False
    try:
        return codec.encode(text)
    finally:
        codec.backend.encode_special_tokens = True


def _framing(theirs: Any, codec: HFTokenizer) -> tuple[list[int], list[int]]:
    """What theirs puts before and behind each text; where it is the template's, it is none of our business."""
    ids, own, inner = theirs("a").input_ids, codec.backend.encode("a").ids, codec.encode("a")
    if ids == own:
        for start in range(len(own) - len(inner) + 1):
            if own[start : start + len(inner)] == inner:
                return own[:start], own[start + len(inner) :]
    return ([codec.bos_id()] if codec.bos_id() >= 0 else []), []


def _check_special_ids(theirs: Any, expected: dict[str, int], whose: str) -> None:
    found = {name: getattr(theirs, f"{name}_token_id") for name in expected}
    if found != expected:
        raise ExportError(f"the exported tokenizer's special ids are {found}, {whose} {expected}")


def _shown(ids: list[int]) -> str:
    return f"{ids[:8]}{' …' if len(ids) > 8 else ''}"
