"""Strings on which tokenizers disagree, for comparing an exported tokenizer with its original.

Valid Unicode only: a lone surrogate has no UTF-8, so neither SentencePiece nor `tokenizers` accepts one.
"""

import random
from collections.abc import Iterator, Sequence

CONTROL_SYMBOLS = ("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>")

# Every code point with the property White_Space, and look-alikes.
SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000\u180e\u200b\u2060\ufeff"
)
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u17b4\u180b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2061\u2066\u2069\ufe0f"
)
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
# First and last code points of each UTF-8 length, noncharacters, private use, unassigned planes, the last code point.
EDGES = (
    "\x7f\x80\u07ff\u0800\ud7ff\ue000\uf8ff\ufdd0\ufffc\ufffd\ufffe\uffff\U00010000\U0001fffe\U0003ffff\U00050000"
    "\U000a1234\U000e0001\U000e0100\U000f0000\U0010fffd\U0010ffff"
)
# SentencePiece's own marks: U+2581 stands for a space, unknown decodes to U+2047, the trainer uses U+2585.
MARKS = ("▁", "▁▁", " ▁", "▁ ", "a▁b", "▁the", "▁▁▁▁x", "⁇", " ⁇ ", "▅", "Ġ", "Ċ", "##ing", "</w>", "@@")
BYTE_LOOKALIKES = (
    "<0x0A>",
    "<0x00>",
    "<0xFF>",
    "<0xE2><0x96><0x81>",
    "<0x0a>",
    "<0x0A",
    "0x0A>",
    "\\x0a",
    "\\u2581",
    "%0A",
)

SCRIPTS = (
    "naïve café — “quoted” … ½ ﬁ ﬀ ſ ß ẞ İ ı",
    "e\u0301 é a\u0308\u0323 ä\u0323 \u0301 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "Привет, мир! Ёлка й и\u0306",
    "Καλημέρα κόσμε ς σ Σ",
    "مرحبا بالعالم ١٢٣ لا\u0651",
    "שלום עולם שָׁלוֹם",
    "नमस्ते दुनिया क्षत्रिय क\u094d\u200dष",
    "สวัสดีชาวโลก ก็ ำ",
    "你好，世界。简体 繁體 𠮷野家 㐂",
    "こんにちは世界 ｶﾀｶﾅ が か\u3099 〜",
    "안녕하세요 \u1112\u1161\u11ab\u1100\u1173\u11af 한글 ㅎㅏㄴ",
    "გამარჯობა ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ ⵜⴰⵎⴰⵣⵉⵖⵜ 𐍈 𒀀 𓀀",
    "xin chào thế giới ưỡ ợ",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ∑∏∫ √2 ≈ 1.414 𝔸𝕓𝒸 ①②③ Ⅷ ²³",
)
EMOJI = (
    "😀",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇫🇷🇯",
    "❤️",
    "☎︎",
    "1️⃣#️⃣",
    "🧑🏿‍🚀",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "👩‍❤️‍💋‍👨x👩‍❤️‍💋‍👨",
)
CODE = (
    "def f(x):\n    if x:\n        return [y for y in range(10)]\n\n\n    return None\n",
    "\tif (a) {\n\t\tb();\n\t}\n",
    "class A:\r\n  pass\r\n\r\n",
    "mixed:\n \t x = 1\n\t  y = 2\n  \t\tz",
    "trailing spaces   \n   \n\t\n",
    '{"a": [1, 2.5e-10, null], "b": {"c": "\\n\\u00e9"}}',
    "<html><body class='x'>&nbsp;&amp;</body></html>",
    "SELECT * FROM t WHERE a <> 'it''s'; -- no\n",
    "a<-b->c=>d<=e>=f!=g===h||i&&j<<k>>l::m..n...o",
    "https://example.org/a%20b?c=d&e=f#g user@host:/path/to.file",
    "# ---------------------------------------------------------------- #",
    "x=1;y=22;z=333;w=4444;v=55555",
    "_a__b___c____d _ __ ___ self.__init__",
    "\\\\ \\n \\\" \\' `` ``` $$ $x$ \\frac{a}{b}",
)
NUMBERS = (
    "0",
    "00",
    "1234567890",
    "3.14159",
    "-1e-5",
    "1,000,000",
    "0x1F",
    "1_000",
    "12:34:56",
    "٣٤٥",
    "१२३",
    "１２３",
    "1 2 3",
)
WORDS = (
    "the",
    "The",
    "THE",
    "tHe",
    " the",
    "the ",
    "  the  ",
    "don't",
    "it’s",
    "a",
    "I",
    "antidisestablishmentarianism",
)
RUN_LENGTHS = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 257)
RUN_UNITS = (
    " ",
    "\n",
    "\t",
    "a",
    "=",
    "-",
    "0",
    "▁",
    "\r\n",
    " \n",
    "ab",
    "aba",
    "é",
    "中",
    "😀",
    "\x00",
    "\u0301",
    "\u00a0",
)


def stress_texts(control_symbols: Sequence[str] = CONTROL_SYMBOLS, *, mixes: int = 400) -> list[str]:
    """At least 832 different strings, the same on each call; some spell `control_symbols`.

    `mixes` is the number of random concatenations.
    """
    texts = [*_singles(), *_runs(), *_in_context(), *_spelled(control_symbols)]
    texts.extend(_mixes(texts, mixes))
    return list(dict.fromkeys(texts))


def _singles() -> Iterator[str]:
    yield ""
    for chars in (SPACES, INVISIBLE, CONTROLS, EDGES):
        yield from chars
        yield chars
    for group in (MARKS, BYTE_LOOKALIKES, SCRIPTS, EMOJI, CODE, NUMBERS, WORDS):
        yield from group


def _runs() -> Iterator[str]:
    for unit in RUN_UNITS:
        for length in RUN_LENGTHS:
            yield unit * length
            if unit == " ":
                yield "x" + unit * length + "y"
                yield "\n" + unit * length + "return"


def _in_context() -> Iterator[str]:
    """Each space and edge code point between, before and after letters, where merges must stop and start."""
    for char in SPACES + EDGES:
        yield f"a{char}b"
        yield f"{char}the {char} end{char}"


def _spelled(control_symbols: Sequence[str]) -> Iterator[str]:
    for symbol in control_symbols:
        yield from (symbol, f"a{symbol}b", f" {symbol} ", symbol + symbol, symbol[:-1], symbol.upper(), f"\n{symbol}\n")
    yield "".join(control_symbols)


def _mixes(parts: Sequence[str], count: int) -> Iterator[str]:
    # `Random.random` is the only method whose sequence Python guarantees across versions.
    generator = random.Random(832)
    short = [part for part in parts if len(part) <= 80]
    for _ in range(count):
        chosen = (short[int(generator.random() * len(short))] for _ in range(2 + int(generator.random() * 14)))
        glue = ("", "", " ", "\n")[int(generator.random() * 4)]
        yield glue.join(chosen)
