"""A Hugging Face tokenizer.json as a `Codec` (codec.py), through the Rust library `tokenizers`.

The library decides what the ids are; the file is taken as it is, but for what would make ids depend on more than the text:

- truncation and padding, which a file may carry from somebody's last call, are switched off
- BPE dropout, which is random, is refused
- special tokens that a text spells are plain characters (`encode_special_tokens`). Other added tokens, such as the runs of
  spaces of GPT-NeoX or the `<think>` of Qwen 3, are text that the model was trained on, and stay one token each.

A document begins with a token only where the template of the file puts one before a text. So GPT-2, OLMo 2 and Qwen, which
separate documents by one token, have none, and `bos_id` is -1. `add_bos_token` beside it says nothing: transformers, 4.57
and 5, passes over it where there is a tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pretrain.errors import DataError, PretrainError, UserError
from tokenizer.models.base import TOKENIZER_JSON, read_object, special_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_VOCAB = 1 << 31  # ids travel as int32
NAMED = ("unk", "bos", "eos", "pad")


class HFTokenizer:
    """A `Codec`. `special` has the spelling of each special token by its id, `named` the ids by name ("bos", "eos", …)."""

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any], named: dict[str, int], begin: int) -> None:
        self.tokenizer, self.definition, self.named, self.begin = tokenizer, definition, named, begin
        added = tokenizer.get_added_tokens_decoder()
        self.special = {token: added[token].content for token in sorted(added) if added[token].special}
        self._size = 1 + max(tokenizer.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens."""
        with guarded(f"the tokenizer cannot encode {text[:60]!r}"):
            # The batch form leaves out the offsets of each token: a third faster, and less memory.
            ids: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text; what is no UTF-8 becomes U+FFFD."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def bos_id(self) -> int:
        """The token that begins each text."""
        return self.begin

    def eos_id(self) -> int:
        """The token that ends a document."""
        return self.named["eos"]

    def pad_id(self) -> int:
        """The padding token, which may be the one that ends a document."""
        return self.named.get("pad", -1)

    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._size


def hf_tokenizer(files: Mapping[str, bytes], where: str) -> HFTokenizer:
    """The codec of `codec.read_tokenizer`. Raises DataError, and UserError without the package."""
    definition = read_object(files[TOKENIZER_JSON], where)
    with guarded(f"{where}: not a tokenizer.json"):
        return _codec(files, definition, where)


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """`what`, as a DataError: the library raises plain Exception, and where it panics something that is not even one."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, PretrainError | KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise DataError(f"{what}: {str(error)[:300]}") from None


def _codec(files: Mapping[str, bytes], definition: dict[str, Any], where: str) -> HFTokenizer:
    tokenizer = _load(definition, files[TOKENIZER_JSON], where)
    named = {name: token for name in NAMED if (token := _named_id(tokenizer, files, name, where)) is not None}
    if "eos" not in named:
        raise DataError(
            f"{where}: nothing beside it says which token ends a document",
            hint='"eos_token": "…" in the tokenizer_config.json beside it names one',
        )
    _make_special(tokenizer, set(named.values()))
    tokenizer.encode_special_tokens = True
    codec = HFTokenizer(tokenizer, definition, named, _begin(tokenizer, named["eos"], where))
    if codec.vocab_size() > LARGEST_VOCAB:
        raise DataError(f"{where}: has the id {codec.vocab_size() - 1}, and ids must be below {LARGEST_VOCAB}")
    for spelling in injectable(codec):
        raise DataError(
            f"{where}: a text that spells {spelling!r} would become that token, and end or begin a document"
        )
    return codec


def injectable(codec: HFTokenizer) -> Iterator[str]:
    """Special tokens that a text can make by spelling them."""
    for token, spelling in codec.special.items():
        if token in codec.encode(spelling) or token in codec.encode(f"a {spelling} b{spelling}c"):
            yield spelling


def _load(definition: dict[str, Any], data: bytes, where: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"a tokenizer.json needs the package {error.name}", hint="pip install 'pretrain-toolkit[export]'"
        ) from error
    model = definition.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise DataError(f"{where}: has dropout={model['dropout']}, which makes its ids random", hint="set it to null")
    tokenizer = Tokenizer.from_str(data.decode())
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise DataError(f"{where}: has an empty vocabulary")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise DataError(f"{where}: gives one id to several tokens")
    for entry in definition.get("added_tokens") or []:
        # The library goes by the model's vocabulary, and for the rest counts on, whatever the file says.
        if vocabulary.get(entry["content"]) != entry["id"]:
            raise DataError(
                f"{where}: says that {entry['content']!r} is {entry['id']}, and the library gives it the id "
                f"{vocabulary.get(entry['content'])}"
            )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _named_id(tokenizer: Tokenizer, files: Mapping[str, bytes], name: str, where: str) -> int | None:
    value = special_token(files, name, where)
    if isinstance(value, str):
        token = tokenizer.token_to_id(value)
        if token is None:
            raise DataError(f"{where}: its {name} token is {value!r}, which is not in its vocabulary")
        return int(token)
    if value is not None and tokenizer.id_to_token(value) is None:
        raise DataError(f"{where}: its {name} token is {value}, which is not in its vocabulary")
    return value


def _make_special(tokenizer: Tokenizer, tokens: set[int]) -> None:
    """Named tokens are special, even where the file has them as plain ones."""
    from tokenizers import AddedToken

    added = tokenizer.get_added_tokens_decoder()
    for token in sorted(tokens):
        if token not in added or not added[token].special:
            spelling = tokenizer.id_to_token(token)
            tokenizer.add_special_tokens([AddedToken(spelling, normalized=False, special=True)])


def _begin(tokenizer: Tokenizer, eos: int, where: str) -> int:
    """The token that each text begins with; -1 for none, and where it is the one that ends the document before."""
    framed, inner = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    before = framed[: framed.index(inner[0])] if inner and inner[0] in framed else []
    if before and tokenizer.id_to_token(before[0]) is None:
        raise DataError(f"{where}: puts the id {before[0]} before each text, which is not in its vocabulary")
    if len(before) > 1:
        raise DataError(f"{where}: puts the tokens {before} before each text, and a document can begin with one only")
    return before[0] if before and before[0] != eos else -1
