"""Writing a run's tokenizer into a Hugging Face directory, and finding the tokenizer of such a directory.

    tokenizer.model   converted to a tokenizer.json with the same ids, or refused  (tokenizer/models/sentencepiece_to_hf.py)
    tokenizer.json    copied byte for byte, with the files that define its special tokens

For an import of one of our own exports, `find_tokenizer` takes its SentencePiece model, so that the run continues with the
tokenizer it had.
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
    """Refuse a tokenizer whose ids cannot be exported exactly, or with more tokens than `vocab_size` embedding rows.

    A SentencePiece model must be one that a merge list can express. A tokenizer.json must load, name its end-of-document
    token, and not encode the spelling of a special token as that token. Raises DataError, and UserError if a package is
    missing.
    """
    if is_tokenizer_json(model_file):
        tokens = load_tokenizer(model_file).vocab_size()
    else:
        model = read_proto(model_file)
        refuse_unless_exportable(model, str(model_file))
        tokens = len(model.pieces)
    if tokens > vocab_size:
        raise DataError(f"the tokenizer {model_file} has {tokens} tokens, the model only {vocab_size} embedding rows")


def write_tokenizer_files(model_file: Path, folder: Path, *, max_tokens: int) -> SpecialTokens:
    """Write the tokenizer into `folder` and return its special tokens, None for each that it lacks.

    `max_tokens` is the length that `truncation=True` cuts to; a tokenizer_config.json that is copied keeps its own. Raises
    as `check_tokenizer`.
    """
    if not is_tokenizer_json(model_file):
        return write_tokenizer(model_file, folder, max_tokens=max_tokens)
    tokenizer, files = _load_json_tokenizer(model_file), read_tokenizer(model_file)
    ids = {**({"bos": tokenizer.bos_id()} if tokenizer.bos_id() >= 0 else {}), **tokenizer.special_ids}
    special = {name: (token, str(tokenizer.backend.id_to_token(token))) for name, token in ids.items()}
    if "tokenizer_config.json" not in files:
        # Without one, transformers takes the class of the model's family, which rebuilds the tokenizer.
        names = {f"{name}_token": spelling for name, (_, spelling) in special.items()}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": max_tokens}
        files["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    for name in (TOKENIZER_JSON, *COMPANION_FILES):
        if name in files:
            (folder / name).write_bytes(files[name])
    return SpecialTokens(special.get("unk"), special.get("bos"), special["eos"], special.get("pad"))


def control_symbols(model_file: Path) -> list[str]:
    """Spellings of all special tokens, by id. Raises as `check_tokenizer`."""
    if is_tokenizer_json(model_file):
        return list(_load_json_tokenizer(model_file).special_tokens.values())
    return control_pieces(read_proto(model_file))


def find_tokenizer(hf_dir: Path) -> Path:
    """The tokenizer of a Hugging Face directory: its tokenizer.json, or the tokenizer.model that it was converted from.

    Raises DataError if there is neither, if there is only a tokenizer.model that cannot be exported exactly, and as
    `check_tokenizer`.
    """
    model_file, json_file = hf_dir / SENTENCEPIECE_MODEL, hf_dir / TOKENIZER_JSON
    if json_file.is_file():
        if model_file.is_file() and _is_converted_from(json_file, model_file):
            return model_file
        load_tokenizer(json_file)
        return json_file
    if not model_file.is_file():
        raise DataError(
            f"{hf_dir} has neither {TOKENIZER_JSON} nor {SENTENCEPIECE_MODEL}",
            hint="convert older files with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    refuse_unless_exportable(read_proto(model_file), str(model_file))
    load_sentencepiece(model_file.read_bytes(), str(model_file))
    return model_file


def tokenizer_notes(model_file: Path) -> list[str]:
    """A sentence for each way in which encoding and decoding changes a text; none for a SentencePiece model."""
    return round_trip_losses(_load_json_tokenizer(model_file)) if is_tokenizer_json(model_file) else []


def _is_converted_from(json_file: Path, model_file: Path) -> bool:
    """Whether our conversion of the model gives this tokenizer.json."""
    try:
        with wrap_library_errors(str(json_file)):
            model = read_proto(model_file)
            if incompatibilities(model):
                return False
            ours = build_tokenizer(model)
            # Parse it with the same release of the library: other releases write other defaults.
            theirs = type(ours).from_str(json_file.read_text(encoding="utf-8"))
            # A file keeps the truncation and padding of its last use.
            theirs.no_truncation()
            theirs.no_padding()
    except PretrainError:
        # Problems of either file are reported when it is used.
        return False
    return bool(ours.to_str() == theirs.to_str())


def _load_json_tokenizer(model_file: Path) -> HFTokenizer:
    tokenizer: Tokenizer = load_tokenizer(model_file)
    assert isinstance(tokenizer, HFTokenizer)
    return tokenizer
