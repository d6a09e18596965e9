import math

import pytest
import torch

from pretrain.config.schema import ModelConfig
from pretrain.model.feed_forward import FeedForward, SwiGLU, build_feed_forward


def network(ffn: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_feed_forward(ModelConfig(d_model=6, n_heads=1, n_kv_heads=1, d_ff=10, ffn=ffn)).double()


def relu(x: float) -> float:
    return max(0.0, x)


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


X = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("ffn", "activation"), [("relu", relu), ("gelu", gelu)])
def test_two_matrices_with_the_activation_between(ffn: str, activation) -> None:
    module = network(ffn)
    assert isinstance(module, FeedForward)
    between = (X @ module.up.weight.T).detach().apply_(activation)
    torch.testing.assert_close(module(X), between @ module.down.weight.T)


def test_swiglu_multiplies_the_gate_in() -> None:
    module = network("swiglu")
    assert isinstance(module, SwiGLU)
    gate = (X @ module.gate.weight.T).detach().apply_(silu)
    torch.testing.assert_close(module(X), (gate * (X @ module.up.weight.T)) @ module.down.weight.T)


@pytest.mark.parametrize("ffn", ["swiglu", "gelu", "relu"])
def test_each_position_is_treated_alone_and_there_is_no_bias(ffn: str) -> None:
    module = network(ffn)
    torch.testing.assert_close(module(X)[1, 2], module(X[1, 2]))
    assert (module(torch.zeros(1, 6, dtype=torch.float64)) == 0).all()
    assert {name.split(".")[-1] for name, _ in module.named_parameters()} == {"weight"}
