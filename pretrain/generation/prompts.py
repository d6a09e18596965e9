"""Prompts: read, encode, and limit to the context. No torch.

A prompt is [bos] + ids, the start of a document in the shards. Without a bos, an empty prompt is the eos of a previous
document. Text that spells a control symbol is encoded as text (`tokenizer.models.base`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.config.schema import Config, ModelConfig
from pretrain.errors import ConfigError, UserError
from tokenizer.models.base import Tokenizer
from tokenizer.models.open_tokenizer import tokenizer_from_files


def gather_prompts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The given texts, or the prompts of a file; by default one empty prompt. Raises UserError."""
    if file is None:
        return list(texts) or [""]
    if texts:
        raise UserError(f"both TEXT and --prompts {file} are given", hint="put all prompts into the file")
    prompts = read_prompt_file(file)
    if not prompts:
        raise UserError(f"{file} has no prompts", hint="write one prompt per line")
    return prompts


def read_prompt_file(file: Path) -> list[str]:
    """One prompt per line: in a .jsonl file a string or an object with `prompt` or `text`, else plain text.

    An empty line is an empty prompt in a plain file, and is skipped in a .jsonl file. Raises UserError.
    """
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}") from None
    if not text:
        return []
    lines = text.removesuffix("\n").split("\n")
    if file.suffix != ".jsonl":
        return [line.removesuffix("\r") for line in lines]
    return [_prompt(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _prompt(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON: {line[:60]}") from None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("text"))
    if not isinstance(value, str):
        raise UserError(f"{where}: not a prompt", hint='write a string, or an object with "prompt" or "text"')
    return value


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt. Raises UserError if the text is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text[:40]!r} is not UTF-8: {error.reason} at {error.start}") from None
    bos = [tokenizer.bos_id()] if tokenizer.bos_id() >= 0 else []
    return [*bos, *tokenizer.encode(text)] or [tokenizer.eos_id()]


def new_token_limit(config: ModelConfig, prompt: Sequence[int], max_new_tokens: int) -> int:
    """`max_new_tokens`, or fewer if the context of the model ends before.

    Raises UserError if the prompt is empty, has ids outside the vocabulary, or fills the context.
    """
    if not prompt:
        raise UserError("a prompt has no tokens", hint="start it with the bos id, or with the eos id")
    outside = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
    if outside is not None:
        raise UserError(f"a prompt has the id {outside}, outside model.vocab_size={config.vocab_size}")
    if len(prompt) >= config.max_seq_len:
        raise UserError(
            f"a prompt has {len(prompt)} tokens; at most {config.max_seq_len - 1} leave room for a new one in "
            f"model.max_seq_len={config.max_seq_len}",
            hint="shorten the prompt",
        )
    return min(max_new_tokens, config.max_seq_len - len(prompt))


def sample_prompts(config: Config, tokenizer: Mapping[str, bytes] | None) -> list[list[int]]:
    """Ids of `eval.prompts`. Raises ConfigError if the model cannot continue one of them."""
    if not config.eval.prompts or tokenizer is None:
        return []
    loaded = tokenizer_from_files(tokenizer, f"data.tokenizer={config.data.tokenizer}")
    rows, problems = [], []
    for number, prompt in enumerate(config.eval.prompts):
        try:
            rows.append(encode_prompt(loaded, prompt))
            new_token_limit(config.model, rows[-1], 1)
        except UserError as error:
            problems.append(f"eval.prompts[{number}]: {error.message}")
    if problems:
        raise ConfigError(problems)
    return rows
