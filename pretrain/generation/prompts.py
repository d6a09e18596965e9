"""Where prompts come from, what they become, and how much may follow them. Without torch.

A prompt is [bos] + its ids, as a document begins in the shards; without a bos, an empty prompt is the eos of a document
before it. What a text spells never becomes a control symbol: the codec sees to that.
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
    """The texts given, or those of a file; without any, one that is empty. Raises UserError."""
    if file is None:
        return list(texts) or [""]
    if texts:
        raise UserError(f"both TEXT and --prompts {file} are given", hint="put all prompts into the file")
    prompts = read_prompt_file(file)
    if not prompts:
        raise UserError(f"{file} holds no prompts")
    return prompts


def read_prompt_file(file: Path) -> list[str]:
    """A prompt a line: in a .jsonl file a string, or an object with `prompt` or `text`; else the line as it is.

    An empty line of a plain file is an empty prompt, one of a .jsonl file is passed over. Raises UserError.
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
        raise UserError(f"{where}: holds no prompt", hint='a string, or an object with "prompt" or "text"')
    return value


def encode_prompt(codec: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt. Raises UserError for what is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text[:40]!r} is not UTF-8: {error.reason} at {error.start}") from None
    start = [codec.bos_id()] if codec.bos_id() >= 0 else []
    return [*start, *codec.encode(text)] or [codec.eos_id()]


def room(config: ModelConfig, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens may follow a prompt: both together fit the context.

    Raises UserError for a prompt that is empty, holds ids that the model has not, or leaves no room.
    """
    if not prompt:
        raise UserError("a prompt has no tokens", hint="it begins with the bos id, or the eos id of the text before")
    outside = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
    if outside is not None:
        raise UserError(f"a prompt holds the id {outside}, and the model has model.vocab_size={config.vocab_size} ids")
    if len(prompt) >= config.max_seq_len:
        raise UserError(
            f"a prompt has {len(prompt)} tokens, and must leave room for one more in model.max_seq_len="
            f"{config.max_seq_len}",
            hint="a shorter prompt",
        )
    return min(max_new_tokens, config.max_seq_len - len(prompt))


def sample_prompts(config: Config, tokenizer: Mapping[str, bytes] | None) -> list[list[int]]:
    """Ids of `eval.prompts`. Raises ConfigError for those that the model cannot continue."""
    if not config.eval.prompts or tokenizer is None:
        return []
    codec, rows, problems = tokenizer_from_files(tokenizer, f"data.tokenizer={config.data.tokenizer}"), [], []
    for number, prompt in enumerate(config.eval.prompts):
        try:
            rows.append(encode_prompt(codec, prompt))
            room(config.model, rows[-1], 1)
        except UserError as error:
            problems.append(f"eval.prompts[{number}]: {error.message}")
    if problems:
        raise ConfigError(problems)
    return rows
