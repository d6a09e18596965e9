"""A freshly initialised decoder as something that can be exported, without a checkpoint on disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema import Config, DataConfig, ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights


@dataclass
class MemorySource:
    """A `WeightSource` over tensors in memory; tests may change them."""

    config: Config
    tensors: dict[str, Tensor]
    tokenizer: Path | None
    step: int = 7
    tokens: int = 12_345
    reads: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[name].clone()


def small_model(**changes: Any) -> ModelConfig:
    """About 0.2M parameters, grouped queries, 1,009 rows as the tokenizer of the tests."""
    shape: dict[str, Any] = {
        "vocab_size": 1_009,
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 160,
        "max_seq_len": 128,
    }
    return ModelConfig(**(shape | changes))


def memory_source(tokenizer: Path | None, model: ModelConfig | None = None, *, seq_len: int = 96) -> MemorySource:
    """Seeded weights. Norms are not left at one, or exchanging two of them would change nothing."""
    model = model or small_model()
    decoder = Decoder(model)
    init_weights(decoder, model, seed=1)
    tensors = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    for tensor in tensors.values():
        if tensor.dim() == 1:
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return MemorySource(Config(model=model, data=DataConfig(seq_len=seq_len)), tensors, tokenizer)


def decoder_of(source: MemorySource) -> Decoder:
    """The decoder that holds the source's weights."""
    decoder = Decoder(source.config.model)
    tied = {"head.weight": source.tensors["embedding.tokens.weight"]} if source.config.model.tie_embeddings else {}
    decoder.load_state_dict(source.tensors | tied)
    return decoder.eval()
