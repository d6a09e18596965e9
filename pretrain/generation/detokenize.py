"""Incremental detokenization. Text is emitted once and never changes.

Bytes of an incomplete character, and text that may begin a stop text, are held back until they are decided.
"""

from collections.abc import Callable, Sequence

from tokenizer.models.base import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoding of bytes that are not, or not yet, a character
# Each new token is decoded with up to MAX_CONTEXT before it, cut back to CONTEXT: decoding everything would be quadratic.
CONTEXT, MAX_CONTEXT = 8, 32


class IncrementalDetokenizer:
    """Decodes the tokens behind a prompt one by one."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # Decoding starts with the prompt: some tokenizers strip a space from the beginning of a text.
        self._ids = self._with_text(prompt)
        self._emitted_ids, self._emitted = len(self._ids), tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """Characters that the token completes."""
        self._ids += self._with_text([token])
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith(INCOMPLETE) else self._emit(text)

    def flush(self) -> str:
        """The remaining text, including incomplete characters."""
        return self._emit(self._tokenizer.decode(self._ids))

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted) :]
        if not text.startswith(self._emitted):
            # An invalid byte can change how the characters before it decode, but those are already out.
            new = self._tokenizer.decode(self._ids[self._emitted_ids :])
        self._emitted_ids, self._emitted = len(self._ids), text
        if len(self._ids) > MAX_CONTEXT:
            self._shorten_context(text)
        return new

    def _shorten_context(self, text: str) -> None:
        """Keep the last tokens only, if they decode to the same text alone."""
        kept = self._ids[-CONTEXT:]
        end = self._tokenizer.decode(kept)
        if end.strip() and INCOMPLETE not in end and text.endswith(end):
            self._ids, self._emitted_ids, self._emitted = kept, len(kept), end

    def _with_text(self, ids: Sequence[int]) -> list[int]:
        # The model's vocabulary may be padded beyond the tokenizer's; those ids have no text.
        return [token for token in ids if token < self._tokenizer.vocab_size()]


class CompletionBuilder:
    """Tokens and text of one row while it is generated. `on_text` gets each new piece of text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop_ids: frozenset[int] = frozenset(),
        stop_texts: Sequence[str] = (),
        on_text: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tokens: list[int] = []
        self.text, self.stopped, self._at_stop_text = "", False, False
        self._detokenizer, self._on_text, self._held_back = IncrementalDetokenizer(tokenizer, prompt), on_text, ""
        self._stop_ids, self._stop_texts = stop_ids, stop_texts

    def add(self, token: int) -> bool:
        """Add a token; False if it ends the text. A stop token is not part of the text."""
        if token in self._stop_ids:
            self.stopped = True
            return False
        self.tokens.append(token)
        self._add_text(self._detokenizer.push(token))
        return not self.stopped

    def finish(self) -> None:
        """Emit everything that was held back."""
        if not self._at_stop_text:
            self._add_text(self._detokenizer.flush())
        self._emit(len(self._held_back))

    def _add_text(self, new: str) -> None:
        self._held_back += new
        stops = [at for stop in self._stop_texts if (at := self._held_back.find(stop)) >= 0]
        if stops:
            self.stopped, self._at_stop_text, self._held_back = True, True, self._held_back[: min(stops)]
            self._emit(len(self._held_back))
        else:
            self._emit(len(self._held_back) - _stop_prefix_length(self._held_back, self._stop_texts))

    def _emit(self, count: int) -> None:
        piece, self._held_back = self._held_back[:count], self._held_back[count:]
        self.text += piece
        if piece:
            self._on_text(piece)


def _stop_prefix_length(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop text."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
