"""What an exported folder has to show before it is published.

    1. transformers loads it and finds every tensor: nothing missing, surplus, of another shape or in error
    2. its logits are the decoder's, on real text and on random tokens
    3. AutoTokenizer gives SentencePiece's ids on every nasty string, and gives the strings back

The bound on logits is tight because errors can be small: a wrong RoPE permutation showed as a KL divergence of 3e-6.
Both sides compute in fp32 on the CPU from the stored weights, so that bf16 rounding is not part of the difference. The
decoder takes its weights from the checkpoint and not from the exported files: a swapped name shows.

One model is in memory at a time, in fp32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from pretrain.convert.nasty_text import CODE, SCRIPTS, nasty_texts
from pretrain.convert.tokenizer_json import control_symbols, read_model
from pretrain.convert.weights import WeightSource, stored_tensor
from pretrain.errors import ExportError, UserError
from pretrain.model.decoder import Decoder

LOGIT_BOUND = 1e-5
MAX_PROOF_TOKENS = 256
FAILURES_LISTED = 3


@dataclass(frozen=True)
class LogitProof:
    """Largest |ours - theirs| over `positions` positions, beside the largest |logit| that occurred."""

    max_abs_difference: float
    max_abs_logit: float
    positions: int

    @property
    def bound(self) -> float:
        """Largest difference that is accepted."""
        return LOGIT_BOUND * max(1.0, self.max_abs_logit)


@dataclass(frozen=True)
class TokenizerProof:
    """Strings compared; `spelling_control` of them spell a control symbol."""

    strings: int
    spelling_control: int
    tokens: int


def import_transformers() -> Any:
    """The module. Raises UserError with the command that installs it."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"export needs the package {error.name}", hint="pip install 'pretrain-toolkit[export]'"
        ) from error
    return transformers


def prove_logits(folder: Path, source: WeightSource, tokenizer: Path, dtype: torch.dtype) -> LogitProof:
    """Compare the folder's model with the decoder of `source` at `dtype`. Raises ExportError with the figures.

    Steps 1 and 2 of the module's list; batch 2, up to 256 tokens.
    """
    tokens_BT = proof_tokens(source, tokenizer)
    theirs_BTV = _their_logits(folder, tokens_BT)
    ours_BTV = _our_logits(source, tokens_BT, dtype)
    difference = (ours_BTV - theirs_BTV).abs().max().item()
    proof = LogitProof(difference, ours_BTV.abs().max().item(), tokens_BT.numel())
    # Written so that a NaN fails as well.
    if not difference <= proof.bound:
        raise ExportError(
            f"logits of the exported model differ from the trained one's by {difference:.3g}; the bound is "
            f"{proof.bound:.3g} (largest |logit| {proof.max_abs_logit:.3g}, {proof.positions} positions)"
        )
    return proof


def proof_tokens(source: WeightSource, tokenizer: Path) -> Tensor:
    """(2, T) ids: text in the first row, uniformly random ids of the whole vocabulary in the second."""
    length = min(source.config.model.max_seq_len, MAX_PROOF_TOKENS)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    text = processor.encode("".join((*CODE, *SCRIPTS)))
    text_T = torch.tensor((text * (length // len(text) + 1))[:length])
    generator = torch.Generator().manual_seed(0)
    random_T = torch.randint(source.config.model.vocab_size, (length,), generator=generator)
    return torch.stack([text_T, random_T])


def prove_tokenizer(folder: Path, tokenizer: Path) -> TokenizerProof:
    """Compare the folder's AutoTokenizer with the SentencePiece model, both directions. Raises ExportError.

    Texts that spell no control symbol are encoded as users do; the others, and all of them once more, with
    `split_special_tokens=True` (tokenizer_json.py says why).
    """
    controls = control_symbols(read_model(tokenizer))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    with _quiet_transformers() as transformers:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _check_special_ids(theirs, processor)
        failures: list[str] = []
        tokens = spelling = 0
        texts = nasty_texts(controls)
        for text in texts:
            ids = processor.encode(text)
            tokens += len(ids)
            spells = any(control in text for control in controls)
            spelling += spells
            failures.extend(_differences(text, ids, theirs, processor, spells))
    if failures:
        listed = "\n".join(f"  - {failure}" for failure in failures[:FAILURES_LISTED])
        raise ExportError(
            f"the exported tokenizer differs from SentencePiece in {len(failures)} comparisons over {len(texts)} "
            f"strings:\n{listed}"
        )
    return TokenizerProof(len(texts), spelling, tokens)


def _differences(text: str, ids: list[int], theirs: Any, processor: Any, spells_control: bool) -> Iterator[str]:
    if theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids != ids:
        yield f"ids of {text[:60]!r} with split_special_tokens=True"
    if not spells_control:
        with_start = [processor.bos_id(), *ids]
        if theirs(text, split_special_tokens=False).input_ids != with_start:
            yield f"ids of {text[:60]!r}"
    decoded = theirs.decode(ids, skip_special_tokens=False)
    # SentencePiece stores a space as ▁, so that a ▁ of the text itself comes back as a space: theirs must do the same.
    if decoded != processor.decode(ids) or decoded != text.replace("▁", " "):
        yield f"decoding the ids of {text[:60]!r} gives {decoded[:60]!r}"


def _check_special_ids(theirs: Any, processor: Any) -> None:
    expected = {name: getattr(processor, f"{name}_id")() for name in ("unk", "bos", "eos", "pad")}
    found = {name: getattr(theirs, f"{name}_token_id") for name in expected}
    if found != expected:
        raise ExportError(f"the exported tokenizer's special ids are {found}, SentencePiece's {expected}")


def _their_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    options = {"dtype": torch.float32, "attn_implementation": "sdpa", "local_files_only": True}
    try:
        with _quiet_transformers() as transformers:
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ExportError(f"transformers cannot load the exported folder: {error}") from error
    # transformers fills a tensor that the files lack with random numbers, and only logs it.
    unclean = {key: _some(found) for key, found in loading.items() if found}
    if unclean:
        raise ExportError(f"transformers did not load the exported weights cleanly: {unclean}")
    with torch.inference_mode():
        logits_BTV: Tensor = model.eval()(tokens_BT).logits
    return logits_BTV


def _our_logits(source: WeightSource, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.device("meta"):
        decoder = Decoder(source.config.model)
    decoder.to_empty(device="cpu")
    if source.config.model.tie_embeddings:  # to_empty gives each module storage of its own
        decoder.head.weight = decoder.embedding.tokens.weight
    with torch.inference_mode():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(stored_tensor(source, name, dtype))
        logits_BTV: Tensor = decoder.eval()(tokens_BT)
    return logits_BTV


def _some(found: Sequence[Any] | set[Any] | dict[Any, Any] | str) -> list[str] | str:
    return found if isinstance(found, str) else sorted(map(str, found))[:FAILURES_LISTED]


@contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """The module, with its progress bars and its log messages below errors switched off for the while."""
    transformers = import_transformers()
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
