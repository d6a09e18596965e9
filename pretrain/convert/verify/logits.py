"""Verification of an exported folder before it is published.

    1. its files hold exactly the tensors of transformers' model: none missing, unexpected or of another shape
    2. transformers' logits match the decoder's, on real text and on random tokens
    3. small folders are also loaded with from_pretrained, as users do, and checked the same way
    4. AutoTokenizer gives the ids of the run's tokenizer on every stress text                        -> token_ids.py

The bound on logits is tight because errors can be small: a wrong RoPE permutation gave a KL divergence of only 3e-6. Both
sides compute in fp32 on the CPU from the rounded weights, so bf16 rounding is not part of the difference. The decoder reads
its weights from the checkpoint, not from the exported files, so an exchanged name shows.

Both models run with one module's weights in memory at a time (streamed.py): the peak is the largest tensor and two copies
of the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.convert.files.weight_files import WeightSource, rounded_parameter
from pretrain.convert.verify.streamed import streamed
from pretrain.convert.verify.transformers_library import quiet_transformers
from pretrain.errors import ExportError
from pretrain.model.decoder import Decoder
from pretrain.model.positions import sinusoidal
from pretrain.storage.safetensors import Entry, read_header, read_tensor
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.stress_texts import CODE, SCRIPTS

LOGIT_BOUND = 1e-5
MAX_PROOF_TOKENS = 256
LOADED_BYTES = 100_000_000  # folders up to this size are also loaded with from_pretrained
FAILURES_LISTED = 3


@dataclass(frozen=True)
class LogitProof:
    """Largest |ours - theirs| and largest |logit| over `positions` positions."""

    max_abs_difference: float
    max_abs_logit: float
    positions: int

    @property
    def bound(self) -> float:
        """Largest accepted difference."""
        return LOGIT_BOUND * max(1.0, self.max_abs_logit)


def prove_logits(folder: Path, source: WeightSource, tokenizer: Path, dtype: torch.dtype) -> LogitProof:
    """Compare the folder's model with the decoder of `source` at `dtype`: steps 1 to 3 above, on 2 rows of up to 256 tokens.

    Raises ExportError if they differ.
    """
    tokens_BT = proof_tokens(source, tokenizer)
    theirs = [their_logits(folder, tokens_BT)]
    if sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= LOADED_BYTES:
        theirs.append(_loaded_logits(folder, tokens_BT))
    ours_BTV = our_logits(source, tokens_BT, dtype)
    largest = max(map(abs, map(float, ours_BTV.aminmax())))
    # In place: logits take 256 MB at a vocabulary of 128k.
    difference = max(float(theirs_BTV.sub_(ours_BTV).abs_().max()) for theirs_BTV in theirs)
    proof = LogitProof(difference, largest, tokens_BT.numel())
    # `not <=` so that NaN fails as well.
    if not difference <= proof.bound:
        raise ExportError(
            f"logits of the exported model differ from the trained model's by {difference:.3g}; the bound is "
            f"{proof.bound:.3g} (largest |logit| {proof.max_abs_logit:.3g}, {proof.positions} positions)"
        )
    return proof


def proof_tokens(source: WeightSource, tokenizer: Path) -> Tensor:
    """(2, T) ids: text in the first row, uniformly random ids in the second."""
    length = min(source.config.model.max_seq_len, MAX_PROOF_TOKENS)
    text = load_tokenizer(tokenizer).encode("".join((*CODE, *SCRIPTS)))
    text_T = torch.tensor((text * (length // len(text) + 1))[:length])
    generator = torch.Generator().manual_seed(0)
    random_T = torch.randint(source.config.model.vocab_size, (length,), generator=generator)
    return torch.stack([text_T, random_T])


def their_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    """Logits (B, T, V) of transformers' model over the exported files. Raises ExportError if they do not fit it."""
    entries: dict[str, Entry] = {}
    for file in sorted(folder.glob("*.safetensors")):
        entries |= read_header(file)
    with quiet_transformers() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(
                    config, attn_implementation="sdpa", dtype=torch.float32
                )
        except Exception as error:
            # A wrong config.json can raise any error in transformers.
            raise ExportError(f"transformers cannot load the exported folder: {str(error)[:500]}") from error
        stored = _stored_names(model, entries)
        for name, module in list(model.named_modules()):
            if type(module).__name__.endswith("RotaryEmbedding"):
                model.set_submodule(
                    name, type(module)(config=model.config)
                )  # rebuilt off the meta device: its buffers are in no file
        with torch.no_grad(), streamed(model.eval(), lambda name: read_tensor(entries[stored[name]])):
            logits_BTV: Tensor = model(tokens_BT, use_cache=False).logits
    return logits_BTV


def _stored_names(model: nn.Module, entries: dict[str, Entry]) -> dict[str, str]:
    """File name of each parameter. Raises ExportError unless the files hold exactly the model's parameters."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    surplus = [name for name in entries if name not in expected]
    odd = [
        f"{name} {entries[name].shape}, not {tuple(parameter.shape)}"
        for name, parameter in expected.items()
        if name in entries and entries[name].shape != tuple(parameter.shape)
    ]
    stored = {id(parameter): name for name, parameter in expected.items() if name in entries}  # tied ones share an id
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in stored]
    unclean = {"missing": missing, "unexpected": surplus, "mismatched": odd}
    _refuse_unclean({key: found for key, found in unclean.items() if found})
    return {name: stored[id(parameter)] for name, parameter in model.named_parameters()}


def _loaded_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    options = {"dtype": torch.float32, "attn_implementation": "sdpa", "local_files_only": True}
    try:
        with quiet_transformers() as transformers:
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
    except Exception as error:
        # As above; also a missing package.
        raise ExportError(f"transformers cannot load the exported folder: {str(error)[:500]}") from error
    # transformers initializes missing tensors randomly and only logs it.
    _refuse_unclean({key: found for key, found in loading.items() if found})
    with torch.no_grad():
        logits_BTV: Tensor = model.eval()(tokens_BT, use_cache=False).logits
    return logits_BTV


def our_logits(source: WeightSource, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 logits (B, T, V) of the decoder with weights rounded to `dtype`."""
    model = source.config.model
    stored_table = model.positions == "sinusoidal" and dtype != torch.float32
    with torch.device("meta"):
        # The export stores the table of sinusoids, rounded like a weight; the decoder would compute it in fp32.
        decoder = Decoder(replace(model, positions="learned") if stored_table else model)

    def load(name: str) -> Tensor:
        if stored_table and name == "embedding.positions.weight":
            return sinusoidal(torch.arange(model.max_seq_len), model.d_model).to(dtype).float()
        return rounded_parameter(source, name, dtype)

    with torch.no_grad(), streamed(decoder.eval(), load):
        logits_BTV: Tensor = decoder(tokens_BT)
    return logits_BTV


def _refuse_unclean(unclean: dict[str, Any]) -> None:
    if unclean:
        shown = {key: _some(found) for key, found in unclean.items()}
        raise ExportError(f"transformers did not load the exported weights cleanly: {shown}")


def _some(found: Sequence[Any] | set[Any] | dict[Any, Any] | str) -> list[str] | str:
    return found if isinstance(found, str) else sorted(map(str, found))[:FAILURES_LISTED]
