"""Every kind of decoder that there is, small: a thing that must hold for all of them is tested on each."""

from typing import Any

import torch

from pretrain.config.schema import ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights

SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "a key head for each": {"n_kv_heads": 4},
    "one key head": {"n_kv_heads": 1},
    "wide heads": {"head_dim": 12},
    "learned positions": {"positions": "learned"},
    "sinusoidal positions": {"positions": "sinusoidal"},
    "partial rotary": {"rope_fraction": 0.5},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_seq_len": 16},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_seq_len": 16},
    "layernorm with biases": {"norm": "layernorm", "norm_bias": True, "ffn": "gelu", "ffn_bias": True},
    "norms of heads": {"qk_norm": "head"},
    "norms of all heads": {"qk_norm": "full", "norm": "layernorm"},
    "post-norm": {"norm_position": "post", "qk_norm": "full"},
    "biases": {"attention_bias": "all"},
    "tied": {"tie_embeddings": True},
    "the formula as attention": {"attention": "reference"},
}


def small_decoder(seed: int = 0, **changes: Any) -> Decoder:
    """Two blocks; weights so large that its logits differ from token to token. Vectors are not left at one or zero."""
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 24,
        "max_seq_len": 24,
        "init_std": 0.3,
    }
    config = ModelConfig(**(shape | changes))
    model = Decoder(config).eval()
    init_weights(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model
