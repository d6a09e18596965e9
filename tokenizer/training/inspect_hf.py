"""Inspection of a tokenizer.json: its parts, checks, and the tokens of a text. See also inspect_sentencepiece.py."""

from __future__ import annotations

from pathlib import Path

from tokenizer.models.base import SPACE_MARK, tokenizer_sha256
from tokenizer.models.hf_json import SPECIAL_NAMES, HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.round_trip import describe_part, round_trip_losses
from tokenizer.models.stress_texts import stress_texts
from tokenizer.training.inspect_sentencepiece import Check, listed


def open_tokenizer_json(path: Path) -> HFTokenizer:
    """Load a tokenizer.json. Raises DataError, and UserError if the package `tokenizers` is missing."""
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, HFTokenizer), path
    return tokenizer


def facts(path: Path, tokenizer: HFTokenizer) -> dict[str, str]:
    """The parts of the file by name, in display order."""
    parts, model = tokenizer.tokenizer_json, tokenizer.tokenizer_json["model"]
    settings = [
        name.replace("_", " ") for name in ("byte_fallback", "ignore_merges", "fuse_unk") if model.get(name) is True
    ]
    merges = f", {len(model['merges']):,} merges" if "merges" in model else ""
    own, added = len(model.get("vocab", ())), tokenizer.backend.get_added_tokens_decoder()
    special_ids = tokenizer.special_ids
    ignored = [name for name in ("truncation", "padding") if parts.get(name)]
    return {
        "sha256": tokenizer_sha256(path),
        "type": ", ".join([str(model.get("type", "unnamed (old file format)")), *settings]),
        "tokens": f"{tokenizer.vocab_size():,}: {own:,} of the model{merges}, {len(added):,} added",
        "special ids": "  ".join(f"{name} {special_ids.get(name, 'none')}" for name in SPECIAL_NAMES),
        "special tokens": listed(list(tokenizer.special_tokens.values())),
        "other added tokens": listed([entry.content for entry in added.values() if not entry.special]),
        "normalizer": describe_part(parts.get("normalizer")) or "none",
        "pre-tokenizer": describe_part(parts.get("pre_tokenizer")) or "none",
        "decoder": describe_part(parts.get("decoder")) or "none",
        "documents": _document(tokenizer),
        **({"ignored": f"its {' and '.join(ignored)}"} if ignored else {}),
    }


def run_checks(tokenizer: HFTokenizer) -> list[Check]:
    """Check the properties that this toolkit and later users of its models need; foreign tokenizers may lack some."""
    texts = stress_texts(list(tokenizer.special_tokens.values()))
    decoded = {text: tokenizer.decode(tokenizer.encode(text)) for text in texts}
    # U+2581 may decode as the space that it stands for, as it does in SentencePiece.
    changed = [text for text in texts if decoded[text] not in (text, text.replace(SPACE_MARK, " "))]
    losses = round_trip_losses(tokenizer)
    eos, pad = tokenizer.eos_id(), tokenizer.pad_id()
    return [
        Check("text as it is", not losses, "; ".join(losses) or "nothing is rewritten"),
        Check(
            "lossless",
            not changed,
            f"{len(changed):,} of {len(texts):,} stress texts change; the first: {changed[0]!a} becomes "
            f"{decoded[changed[0]]!a}"
            if changed
            else f"{len(texts):,} stress texts are restored exactly",
        ),
        Check("end of documents", True, f"{tokenizer.special_tokens[eos]!a}, id {eos}"),
        Check("pad differs from eos", 0 <= pad != eos, "there is no pad id" if pad < 0 else f"pad {pad}, eos {eos}"),
        # Always true: `hf_tokenizer` refuses other files.
        Check("text stays text", True, "a text that spells a special token stays text"),
        Check(
            "exports to Hugging Face",
            True,
            "its files are copied unchanged; the export compares them with AutoTokenizer",
        ),
    ]


def pieces_of(tokenizer: HFTokenizer, text: str) -> list[tuple[str, int]]:
    """(token, id) of each token of `text`, with `Ġ` or `▁` for a space."""
    return [(str(tokenizer.backend.id_to_token(token)), token) for token in tokenizer.encode(text)]


def _document(tokenizer: HFTokenizer) -> str:
    bos, eos = tokenizer.bos_id(), tokenizer.eos_id()
    return f"ids, {eos}" if bos < 0 else f"{bos}, ids, {eos}"
