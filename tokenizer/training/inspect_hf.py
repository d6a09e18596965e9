"""What a tokenizer.json is: its parts, what it is checked for, and how it cuts a text. See inspect_model.py for ours."""

from __future__ import annotations

from pathlib import Path

from tokenizer.models.base import SPACE_MARK, load_tokenizer
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.round_trip import describe_part, losses
from tokenizer.models.sentencepiece import tokenizer_sha256
from tokenizer.training.inspect_sentencepiece import SHOWN, Check, Checks, visible


def open_tokenizer_json(path: Path) -> HFTokenizer:
    """The codec of a tokenizer.json. Raises DataError, and UserError where the package `tokenizers` is missing."""
    codec = load_tokenizer(path)
    assert isinstance(codec, HFTokenizer), path
    return codec


def facts(path: Path, codec: HFTokenizer) -> dict[str, str]:
    """What the file says of itself; name to value, in the order to show."""
    definition, model = codec.definition, codec.definition["model"]
    settings = [
        name.replace("_", " ") for name in ("byte_fallback", "ignore_merges", "fuse_unk") if model.get(name) is True
    ]
    merges = f", {len(model['merges']):,} merges" if "merges" in model else ""
    own, added = len(model.get("vocab", ())), codec.tokenizer.get_added_tokens_decoder()
    ignored = [name for name in ("truncation", "padding") if definition.get(name)]
    return {
        "sha256": tokenizer_sha256(path),
        "type": ", ".join([str(model.get("type", "of an old file")), *settings]),
        "tokens": f"{codec.vocab_size():,}: {own:,} of the model{merges}, {len(added):,} added",
        "special ids": "  ".join(f"{name} {codec.named.get(name, 'none')}" for name in ("unk", "bos", "eos", "pad")),
        "special tokens": _listed(list(codec.special.values())),
        "other added tokens": _listed([entry.content for entry in added.values() if not entry.special]),
        "normalizer": describe_part(definition.get("normalizer")) or "none",
        "pre-tokenizer": describe_part(definition.get("pre_tokenizer")) or "none",
        "decoder": describe_part(definition.get("decoder")) or "none",
        "documents": _document(codec),
        **({"not used": f"its {' and '.join(ignored)}"} if ignored else {}),
    }


def run_checks(codec: HFTokenizer, checks: Checks) -> list[Check]:
    """What this toolkit, and those who use its models later, need of a tokenizer, and need not find in others' ones."""
    texts = checks.nasty_texts(list(codec.special.values()))
    back = {text: codec.decode(codec.encode(text)) for text in texts}
    # As in SentencePiece's own models, U+2581 may come back as the space that it stands for.
    changed = [text for text in texts if back[text] not in (text, text.replace(SPACE_MARK, " "))]
    lost = losses(codec)
    eos, pad = codec.eos_id(), codec.pad_id()
    return [
        Check("text as it is", not lost, "; ".join(lost) or "nothing is rewritten"),
        Check(
            "lossless",
            not changed,
            f"{len(changed):,} of {len(texts):,} nasty texts come back changed, the first: {changed[0]!a} as "
            f"{back[changed[0]]!a}"
            if changed
            else f"{len(texts):,} nasty texts come back as they were",
        ),
        Check("end of documents", True, f"{codec.special[eos]!a}, id {eos}"),
        Check("pad differs from eos", 0 <= pad != eos, "there is no pad id" if pad < 0 else f"pad {pad}, eos {eos}"),
        # A file of which this is not so was refused when it was opened.
        Check("text stays text", True, "a text that spells a special token stays text"),
        Check(
            "exports to Hugging Face",
            True,
            "its files are copied as they are, and compared with what AutoTokenizer does",
        ),
    ]


def pieces_of(codec: HFTokenizer, text: str) -> list[tuple[str, int]]:
    """Tokens of `text` as they are stored (`Ġ` or `▁` for a space) and their ids, in order."""
    return [(str(codec.tokenizer.id_to_token(token)), token) for token in codec.encode(text)]


def _document(codec: HFTokenizer) -> str:
    return f"ids, {codec.eos_id()}" if codec.bos_id() < 0 else f"{codec.bos_id()}, ids, {codec.eos_id()}"


def _listed(spellings: list[str]) -> str:
    more = f" … {len(spellings):,} in all" if len(spellings) > SHOWN else ""
    return " ".join(map(visible, spellings[:SHOWN])) + more if spellings else "none"
