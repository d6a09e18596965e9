"""A Hugging Face tokenizer.json as a `Tokenizer` (base.py), through the Rust library `tokenizers`.

The library determines the ids. The file is used unchanged, except for settings that make ids depend on more than the text:

- truncation and padding, which a file may have kept from an earlier call, are switched off
- BPE dropout, which is random, is refused
- special tokens spelled in a text are plain characters (`encode_special_tokens`). Other added tokens, such as GPT-NeoX's
  runs of spaces or Qwen 3's `<think>`, are text that the model was trained on, and stay one token each.

A document begins with a bos token only if the file's template puts one before a text. GPT-2, OLMo 2 and Qwen separate
documents by a single token, so their `bos_id` is -1. `add_bos_token` in tokenizer_config.json is ignored, as transformers
4.57 and 5 ignore it if there is a tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pretrain.errors import DataError, PretrainError, UserError
from tokenizer.models.base import TOKENIZER_JSON, read_object, special_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_VOCAB = 1 << 31  # ids are stored as int32
SPECIAL_NAMES = ("unk", "bos", "eos", "pad")


class HFTokenizer:
    """A `Tokenizer` backed by `tokenizers.Tokenizer`.

    `tokenizer_json` is the parsed file, `special_tokens` maps the id of each special token to its spelling, `special_ids`
    maps SPECIAL_NAMES ("bos", "eos", …) to ids.
    """

    def __init__(
        self, backend: Tokenizer, tokenizer_json: dict[str, Any], special_ids: dict[str, int], bos_id: int
    ) -> None:
        self.backend, self.tokenizer_json, self.special_ids, self._bos_id = backend, tokenizer_json, special_ids, bos_id
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {token: added[token].content for token in sorted(added) if added[token].special}
        self._size = 1 + max(backend.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens."""
        with wrap_library_errors(f"the tokenizer cannot encode {text[:60]!r}"):
            # The batch form computes no offsets: a third faster, and less memory.
            ids: list[int] = self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text; invalid UTF-8 becomes U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def bos_id(self) -> int:
        """The token that begins each text, or -1."""
        return self._bos_id

    def eos_id(self) -> int:
        """The token that ends a document."""
        return self.special_ids["eos"]

    def pad_id(self) -> int:
        """The padding token, which may equal `eos_id`, or -1."""
        return self.special_ids.get("pad", -1)

    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._size


def hf_tokenizer(files: Mapping[str, bytes], where: str) -> HFTokenizer:
    """The tokenizer in the files of `base.read_tokenizer`; `where` begins error messages.

    Raises DataError, and UserError if the package `tokenizers` is missing.
    """
    tokenizer_json = read_object(files[TOKENIZER_JSON], where)
    with wrap_library_errors(f"{where}: not a tokenizer.json"):
        return _build(files, tokenizer_json, where)


@contextmanager
def wrap_library_errors(message: str) -> Iterator[None]:
    """Turn any error of the library into a DataError that begins with `message`."""
    try:
        yield
    # The library raises plain Exception, and a panic in Rust arrives as a BaseException.
    except BaseException as error:
        if isinstance(error, PretrainError | KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise DataError(f"{message}: {str(error)[:300]}") from None


def _build(files: Mapping[str, bytes], tokenizer_json: dict[str, Any], where: str) -> HFTokenizer:
    backend = _load(tokenizer_json, files[TOKENIZER_JSON], where)
    ids = {name: token for name in SPECIAL_NAMES if (token := _special_id(backend, files, name, where)) is not None}
    if "eos" not in ids:
        raise DataError(
            f"{where}: no file beside it names the token that ends a document",
            hint='add "eos_token": "…" to the tokenizer_config.json beside it',
        )
    _mark_special(backend, set(ids.values()))
    backend.encode_special_tokens = True
    tokenizer = HFTokenizer(backend, tokenizer_json, ids, _bos_id(backend, tokenizer_json, ids["eos"], where))
    if tokenizer.vocab_size() > LARGEST_VOCAB:
        raise DataError(f"{where}: has the id {tokenizer.vocab_size() - 1}; ids must be below {LARGEST_VOCAB}")
    for spelling in spellable_special_tokens(tokenizer):
        raise DataError(
            f"{where}: a text that spells {spelling!r} would become that token, and end or begin a document"
        )
    return tokenizer


def spellable_special_tokens(tokenizer: HFTokenizer) -> Iterator[str]:
    """Spellings of special tokens that a text can produce."""
    for token, spelling in tokenizer.special_tokens.items():
        if token in tokenizer.encode(spelling) or token in tokenizer.encode(f"a {spelling} b{spelling}c"):
            yield spelling


def _load(tokenizer_json: dict[str, Any], data: bytes, where: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"a tokenizer.json needs the package {error.name}", hint="pip install 'pretrain-toolkit[export]'"
        ) from error
    model = tokenizer_json.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise DataError(f"{where}: has dropout={model['dropout']}, which makes its ids random", hint="set it to null")
    backend = Tokenizer.from_str(data.decode())
    vocabulary = backend.get_vocab()
    if not vocabulary:
        raise DataError(f"{where}: has an empty vocabulary")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise DataError(f"{where}: several tokens share one id")
    for entry in tokenizer_json.get("added_tokens") or []:
        # The library ignores these ids: it takes those of the model's vocabulary, and numbers the other tokens itself.
        if vocabulary.get(entry["content"]) != entry["id"]:
            raise DataError(
                f"{where}: gives {entry['content']!r} the id {entry['id']}, but the library loads it as "
                f"{vocabulary.get(entry['content'])}"
            )
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_id(backend: Tokenizer, files: Mapping[str, bytes], name: str, where: str) -> int | None:
    value = special_token(files, name, where)
    if isinstance(value, str):
        token = backend.token_to_id(value)
        if token is None:
            raise DataError(f"{where}: its {name} token is {value!r}, which is not in its vocabulary")
        return int(token)
    if value is not None and backend.id_to_token(value) is None:
        raise DataError(f"{where}: its {name} token is {value}, which is not in its vocabulary")
    return value


def _mark_special(backend: Tokenizer, tokens: set[int]) -> None:
    """Make these tokens special, even if the file has them as plain ones."""
    from tokenizers import AddedToken

    added = backend.get_added_tokens_decoder()
    for token in sorted(tokens):
        if token not in added or not added[token].special:
            spelling = backend.id_to_token(token)
            backend.add_special_tokens([AddedToken(spelling, normalized=False, special=True)])


def _bos_id(backend: Tokenizer, tokenizer_json: dict[str, Any], eos: int, where: str) -> int:
    """The token that the template puts before each text; -1 if none, or if it is eos (of the previous document)."""
    before = list(_before_text(tokenizer_json.get("post_processor")))
    if before and backend.id_to_token(before[0]) is None:
        raise DataError(f"{where}: puts the id {before[0]} before each text, which is not in its vocabulary")
    if len(before) > 1:
        raise DataError(f"{where}: puts the tokens {before} before each text; a document can begin with one at most")
    return before[0] if before and before[0] != eos else -1


def _before_text(processor: dict[str, Any] | None) -> Iterator[int]:
    """Ids that a post-processor, which the library has parsed, puts before a text. Of several, the last is outermost."""
    processor = processor or {}
    for inner in reversed(processor.get("processors", ())):
        yield from _before_text(inner)
    if "cls" in processor:  # BertProcessing, RobertaProcessing
        yield processor["cls"][1]
    for piece in processor.get("single", ()):  # TemplateProcessing
        if "SpecialToken" not in piece:
            return
        yield from processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
