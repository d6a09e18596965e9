"""Small tokenizer.json files of the kinds that models in the field have, made by the package `tokenizers`. No downloads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.tokenizers import source_chunks, train_sentencepiece

# What Llama 3 and Qwen split texts by, before their merges.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPLIT = SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
ENDOFTEXT = "<|endoftext|>"


def _byte_level(split: str | None, special: list[str], vocab_size: int = 900) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(source_chunks(200_000), trainer)
    tokenizer.add_special_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in special])
    return tokenizer


def gpt2(folder: Path) -> Path:
    """GPT-2: one token ends a document and begins none, and there is no padding token."""
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": ENDOFTEXT,
        "eos_token": ENDOFTEXT,
        "unk_token": ENDOFTEXT,
    }
    return write(folder, _byte_level(None, [ENDOFTEXT]), {**config, "add_prefix_space": False}, "gpt2")


def llama3(folder: Path) -> Path:
    """Llama 3: a template puts the begin of text before each text."""
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = _byte_level(SPLIT, [begin, end, *(f"<|reserved_special_token_{n}|>" for n in range(4))])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin}:0 $A:0",
                pair=f"{begin}:0 $A:0 {begin}:1 $B:1",
                special_tokens=[(begin, tokenizer.token_to_id(begin))],
            ),
        ]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end}
    return write(folder, tokenizer, {**config, "clean_up_tokenization_spaces": True}, "llama")


def qwen(folder: Path) -> Path:
    """Qwen 3: NFC, no begin of text, padding is the end of text, and words that are one token without being special."""
    tokenizer = _byte_level(QWEN_SPLIT, [ENDOFTEXT, "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in ("<think>", "</think>")])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = {
        str(token): {
            "content": entry.content,
            **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
            "special": entry.special,
        }
        for token, entry in tokenizer.get_added_tokens_decoder().items()
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": ENDOFTEXT,
        "pad_token": ENDOFTEXT,
        "unk_token": None,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    }
    return write(folder, tokenizer, config, "qwen3")


def llama2(folder: Path) -> Path:
    """Llama 2: made of a SentencePiece model with a dummy prefix, which lies beside it; no padding token."""
    folder.mkdir(parents=True, exist_ok=True)
    model_file = train_sentencepiece(
        folder / "tokenizer.model", vocab_size=700, add_dummy_prefix=True, pad_id=-1, control_symbols=[]
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    vocabulary = {model.id_to_piece(token): token for token in range(len(model))}
    # As transformers converts it: the pieces are ranked by their ids, which follow the scores.
    merges = sorted(
        (vocabulary[piece], piece[:cut], piece[cut:])
        for piece in vocabulary
        for cut in range(1, len(piece))
        if not model.is_control(vocabulary[piece]) and not model.is_byte(vocabulary[piece])
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    )
    bpe = models.BPE(
        vocabulary, [(left, right) for _, left, right in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(symbol, normalized=False) for symbol in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named = {key: {"content": value, "lstrip": False, "normalized": False} for key, value in names.items()}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, **named}
    return write(folder, tokenizer, config, "llama", {"special_tokens_map.json": named})


KINDS: dict[str, Callable[[Path], Path]] = {"gpt2": gpt2, "llama3": llama3, "qwen": qwen, "llama2": llama2}


def write(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any], model_type: str, more: dict[str, Any] | None = None
) -> Path:
    """The files of a Hugging Face directory that concern its tokenizer; the path of tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config.json": config, "config.json": {"model_type": model_type}, **(more or {})}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2))
    return folder / "tokenizer.json"


def edit(path: Path, **changes: Any) -> Path:
    """Change top-level fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path
