"""The tokenizer of a run as the files of a Hugging Face directory, and the tokenizer that such a directory has.

    tokenizer.model   written as a tokenizer.json with the same ids, or refused with every reason     -> tokenizer_json.py
    tokenizer.json    copied byte for byte, with the files beside it that say what its special tokens are

The way back, `find_tokenizer`, takes the SentencePiece model where a directory is one of our own exports, so that the run
goes on with the tokenizer that it had.
"""

import json
from pathlib import Path

from pretrain.errors import DataError, PretrainError
from tokenizer.models.base import (
    COMPANION_FILES,
    SENTENCEPIECE_MODEL,
    TOKENIZER_JSON,
    Tokenizer,
    is_tokenizer_json,
    read_tokenizer,
)
from tokenizer.models.hf_json import HFTokenizer, wrap_library_errors
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.round_trip import round_trip_losses
from tokenizer.models.sentencepiece import load_sentencepiece, read_proto
from tokenizer.models.sentencepiece_to_hf import (
    SpecialTokens,
    build_tokenizer,
    incompatibilities,
    refuse_unless_exportable,
    write_tokenizer,
)
from tokenizer.models.sentencepiece_to_hf import control_symbols as control_pieces


def check_tokenizer(model_file: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot be exported id for id, or with ids that the model has no row for.

    A SentencePiece model has to be one that a merge list can express; a tokenizer.json has to load, to name the token that
    ends a document, and to keep special tokens out of texts that spell them. `vocab_size` are the rows of the embedding;
    there may be more of them than tokens. Raises DataError, and UserError where a package is missing.
    """
    if is_tokenizer_json(model_file):
        tokens = load_tokenizer(model_file).vocab_size()
    else:
        model = read_proto(model_file)
        refuse_unless_exportable(model, str(model_file))
        tokens = len(model.pieces)
    if tokens > vocab_size:
        raise DataError(f"the tokenizer {model_file} has {tokens} tokens, the model only {vocab_size} rows")


def write_tokenizer_files(model_file: Path, folder: Path, *, max_tokens: int) -> SpecialTokens:
    """Write the tokenizer into `folder`; its special tokens, None where it has no such token.

    `max_tokens` is the context length that `truncation=True` cuts to. It has no effect on a tokenizer_config.json that is
    copied. Raises as `check_tokenizer`.
    """
    if not is_tokenizer_json(model_file):
        return write_tokenizer(model_file, folder, max_tokens=max_tokens)
    codec, files = _json_codec(model_file), read_tokenizer(model_file)
    ids = {**({"bos": codec.bos_id()} if codec.bos_id() >= 0 else {}), **codec.special_ids}
    special = {name: (token, str(codec.backend.id_to_token(token))) for name, token in ids.items()}
    if "tokenizer_config.json" not in files:
        # Without one, transformers takes the class of the model's family, which makes a tokenizer of its own.
        names = {f"{name}_token": spelling for name, (_, spelling) in special.items()}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": max_tokens}
        files["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    for name in (TOKENIZER_JSON, *COMPANION_FILES):
        if name in files:
            (folder / name).write_bytes(files[name])
    return SpecialTokens(special.get("unk"), special.get("bos"), special["eos"], special.get("pad"))


def control_symbols(model_file: Path) -> list[str]:
    """Spellings of all special tokens, in the order of the ids. Raises as `check_tokenizer`."""
    if is_tokenizer_json(model_file):
        return list(_json_codec(model_file).special_tokens.values())
    return control_pieces(read_proto(model_file))


def find_tokenizer(hf_dir: Path) -> Path:
    """The tokenizer of a Hugging Face directory: its tokenizer.json, or the tokenizer.model that it was made of.

    A tokenizer.model alone will do where it can be exported id for id. Raises DataError with every reason where it can't,
    where there is neither, and as `check_tokenizer`.
    """
    model_file, definition = hf_dir / SENTENCEPIECE_MODEL, hf_dir / TOKENIZER_JSON
    if definition.is_file():
        if model_file.is_file() and _is_made_of(definition, model_file):
            return model_file
        load_tokenizer(definition)
        return definition
    if not model_file.is_file():
        raise DataError(
            f"{hf_dir}: holds neither {TOKENIZER_JSON} nor {SENTENCEPIECE_MODEL}",
            hint="transformers makes one of older files: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    refuse_unless_exportable(read_proto(model_file), str(model_file))
    load_sentencepiece(model_file.read_bytes(), str(model_file))
    return model_file


def tokenizer_notes(model_file: Path) -> list[str]:
    """What texts lose on their way through the ids of a tokenizer.json, a sentence each; none for an exportable model."""
    return round_trip_losses(_json_codec(model_file)) if is_tokenizer_json(model_file) else []


def _is_made_of(definition: Path, model_file: Path) -> bool:
    """Whether the tokenizer.json is what we write for this model."""
    try:
        with wrap_library_errors(str(definition)):
            model = read_proto(model_file)
            if incompatibilities(model):
                return False
            ours = build_tokenizer(model)
            # Read and written by the same release of the library: others write other defaults.
            theirs = type(ours).from_str(definition.read_text(encoding="utf-8"))
            # What a file carries from somebody's last call.
            theirs.no_truncation()
            theirs.no_padding()
    except PretrainError:
        # Whatever is wrong with either file is said when it is used.
        return False
    return bool(ours.to_str() == theirs.to_str())


def _json_codec(model_file: Path) -> HFTokenizer:
    codec: Tokenizer = load_tokenizer(model_file)
    assert isinstance(codec, HFTokenizer)
    return codec
