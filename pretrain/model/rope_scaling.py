"""Rotary frequencies for contexts longer than in earlier training.

- linear ........ Chen et al. 2023, "Position Interpolation", https://arxiv.org/abs/2306.15595: all frequencies
                  divided by the factor
- llama3 ........ Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.4.1, https://arxiv.org/abs/2407.21783, as
                  in Llama 3.1's code: low frequencies divided by the factor, high ones unchanged, interpolated between
- yarn .......... Peng et al. 2023, "YaRN", https://arxiv.org/abs/2309.00071: interpolated by the number of turns over the
                  original context; queries and keys are scaled

Formulas follow transformers in their order of operations, so that exports agree bitwise.
"""

import math

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.model.positions import frequencies


def rope_frequencies(config: ModelConfig, device: torch.device) -> tuple[Tensor, float]:
    """Frequencies (rotary width / 2,) in fp32, and the factor that scales cosine and sine."""
    plain = frequencies(config.rotary_width, config.rope_theta, device)
    if config.rope_scaling == "linear":
        return plain / config.rope_factor, 1.0
    if config.rope_scaling == "llama3":
        return _llama3(plain, config), 1.0
    if config.rope_scaling == "yarn":
        return _yarn(plain, config), yarn_scale(config.rope_factor)
    return plain, 1.0


def yarn_scale(factor: float) -> float:
    """Scale of queries and keys in YaRN: equation 22 of the paper."""
    return 0.1 * math.log(factor) + 1.0


def _llama3(plain: Tensor, config: ModelConfig) -> Tensor:
    original, factor = config.rope_original_seq_len, config.rope_factor
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    wavelengths = 2 * math.pi / plain
    scaled = torch.where(wavelengths > original / low, plain / factor, plain)
    share = (original / wavelengths - low) / (high - low)
    blended = (1 - share) * scaled / factor + share * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, blended, scaled)


def _yarn(plain: Tensor, config: ModelConfig) -> Tensor:
    width, factor = config.rotary_width, config.rope_factor

    def channel_with(turns: float) -> float:
        """Channel that completes `turns` turns over the original context."""
        return (width * math.log(config.rope_original_seq_len / (turns * 2 * math.pi))) / (
            2 * math.log(config.rope_theta)
        )

    first = max(math.floor(channel_with(config.rope_beta_fast)), 0)
    last = min(math.ceil(channel_with(config.rope_beta_slow)), width - 1)
    steps = torch.arange(width // 2, dtype=torch.float32, device=plain.device)
    kept = 1 - torch.clamp((steps - first) / (last - first if last != first else 0.001), 0, 1)
    waves = config.rope_theta ** (torch.arange(0, width, 2, device=plain.device).float() / width)
    return 1.0 / (factor * waves) * (1 - kept) + 1.0 / waves * kept
