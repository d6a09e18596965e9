"""Texts on which two encoders of one vocabulary are likely to differ: a quick check of a fast encoder at load time.

A few texts for each known pitfall, and random chains of the vocabulary's own pieces, which exercise all pairs of merges.
`stress_texts.py` is the large collection, for verifying an export once.
"""

import random
from collections.abc import Sequence

from tokenizer.models.base import SPACE_MARK

# Characters that some library treats as a space, and look-alikes.
_SPACES = (
    "\t\n\v\f\r \x1c\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u200d\u2060\ufeff"
)
# First and last code points of each UTF-8 length, noncharacters, private use, unassigned.
_EDGES = "\x00\x01\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffd\uffff\U00010000\U000e0001\U0010fffd\U0010ffff"
_TEXTS = (
    "",
    "The quick brown fox; don't (or do!) — “quoted”, 3.14 1,000,000 0x1F…",
    "def f(x):\n    if x:\n\t\treturn [y for y in range(10)]\r\n\n\n    return None  # ------\n",
    "ﬁ ½ Å A\u030a é e\u0301 ﷺ Ⅷ ｆｕｌｌ ㎒ ² ſ ß İ ı \u00ad \ufb03",
    "Привет, мир! Καλημέρα κόσμε ς مرحبا ١٢٣ שלום नमस्ते क\u094d\u200dष สวัสดี გამარჯობა",
    "你好，世界。繁體字𠮷野家 こんにちは世界ｶﾀｶﾅか\u3099 안녕하세요\u1112\u1161\u11ab",
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫 1️⃣ 𝔘𝔫𝔦 𐍈 𒀀",
    "▁ ▁▁ a▁b ▁ the ▁the ▁▁▁▁x ⁇ ▅ Ġ ##ing </w> x▁ y ▁",
    "<0x0A> <0x0a> <0x00><0xFF> <0xE2><0x96><0x81> <0x0A 0x0A> <+A>",
    "https://example.org/a%20b?c=d&e=f#g user@host:/path/to.file \\frac{a}{b} \\u2581",
)
_RUNS = (" ", "\n", "\t", "a", "=", "-", "0", ".", SPACE_MARK, " \n", "ab", "aba", "é", "中", "\x00", "\u0301")
_RUN_LENGTHS = (2, 3, 7, 16, 33, 65, 300)


def probe_texts(pieces: Sequence[str], symbols: Sequence[str], *, chains: int = 1_500) -> list[str]:
    """About 1,900 valid texts, the same on each call: `symbols` spelled out, and `chains` random chains of `pieces`."""
    texts = [*_TEXTS, *(unit * length for unit in _RUNS for length in _RUN_LENGTHS)]
    texts += [f"a{char}b{char} {char}{char}the " for char in _SPACES + _EDGES]
    for symbol in symbols:
        texts += [symbol, f"x{symbol}y {symbol}{symbol} {symbol[:-1]} {symbol.upper()}"]
    generator = random.Random(0)
    spelled = [piece.replace(SPACE_MARK, " ") for piece in pieces]
    for _ in range(chains if spelled else 0):
        texts.append("".join(spelled[int(generator.random() * len(spelled))] for _ in range(8)))
    return texts
