"""Tokens to text, one by one. What was given out never changes.

So a character of several byte pieces is held back until it is whole, and what may be the beginning of a stop text until it is
not.
"""

from collections.abc import Callable, Sequence

from tokenizer.models.base import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # bytes that are no character, or none yet
KEPT, LONG = 8, 32  # tokens that are decoded again with each new one, or text would cost the square of its length


class TextStream:
    """Decodes the tokens behind a prompt."""

    def __init__(self, codec: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._codec = codec
        # The prompt belongs to it: a tokenizer may take a space away from the beginning of what it decodes.
        self._ids = self._known(prompt)
        self._settled, self._shown = len(self._ids), codec.decode(self._ids)

    def push(self, token: int) -> str:
        """Characters that are whole by one more token."""
        self._ids += self._known([token])
        text = self._codec.decode(self._ids)
        return "" if text.endswith(UNFINISHED) else self._settle(text)

    def rest(self) -> str:
        """What is left at the end, whole or not."""
        return self._settle(self._codec.decode(self._ids))

    def _settle(self, text: str) -> str:
        new = text[len(self._shown) :]
        if not text.startswith(self._shown):
            # A byte that fits nothing may spoil characters before it, and those are out.
            new = self._codec.decode(self._ids[self._settled :])
        self._settled, self._shown = len(self._ids), text
        if len(self._ids) > LONG:
            self._forget(text)
        return new

    def _forget(self, text: str) -> None:
        """Go on with the last tokens only, where they say by themselves what they say in the whole."""
        kept = self._ids[-KEPT:]
        end = self._codec.decode(kept)
        if end.strip() and UNFINISHED not in end and text.endswith(end):
            self._ids, self._settled, self._shown = kept, len(kept), end

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Without ids that the model has beyond its tokenizer's: they have no text."""
        return [token for token in ids if token < self._codec.vocab_size()]


class Continuation:
    """One text while it is made. `show` gets each new piece of it."""

    def __init__(
        self,
        codec: Tokenizer,
        prompt: Sequence[int],
        *,
        stop_ids: frozenset[int] = frozenset(),
        stop_texts: Sequence[str] = (),
        show: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tokens: list[int] = []
        self.text, self.stopped, self._cut = "", False, False
        self._stream, self._show, self._held = TextStream(codec, prompt), show, ""
        self._stop_ids, self._stop_texts = stop_ids, stop_texts

    def take(self, token: int) -> bool:
        """Add a token; False where the text ends with it. A stop token is not a part of the text."""
        if token in self._stop_ids:
            self.stopped = True
            return False
        self.tokens.append(token)
        self._add(self._stream.push(token))
        return not self.stopped

    def close(self) -> None:
        """No more tokens will come."""
        if not self._cut:
            self._add(self._stream.rest())
        self._give(len(self._held))

    def _add(self, new: str) -> None:
        self._held += new
        at = min((at for stop in self._stop_texts if (at := self._held.find(stop)) >= 0), default=None)
        if at is not None:
            self.stopped, self._cut, self._held = True, True, self._held[:at]
            self._give(at)
        else:
            self._give(len(self._held) - _beginning_at_end(self._held, self._stop_texts))

    def _give(self, count: int) -> None:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        if piece:
            self._show(piece)


def _beginning_at_end(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop text begins with."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
