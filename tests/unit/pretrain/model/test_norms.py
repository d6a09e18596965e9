import pytest
import torch
import torch.nn.functional as F

from pretrain.config.schema import ModelConfig
from pretrain.model.norms import LayerNorm, RMSNorm, build_norm

WIDTH, EPS = 24, 1e-3  # a large eps, so that leaving it out shows


def norms(dtype: torch.dtype = torch.float32):
    weight = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    for kind, reference in (
        (RMSNorm, lambda x: F.rms_norm(x, (WIDTH,), weight.to(x.dtype), EPS)),
        (LayerNorm, lambda x: F.layer_norm(x, (WIDTH,), weight.to(x.dtype), None, EPS)),
    ):
        norm = kind(WIDTH, EPS)
        with torch.no_grad():
            norm.weight.copy_(weight)
        yield norm.to(dtype), reference


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_norms_are_those_of_torch_with_their_gradients(scale: float) -> None:
    for norm, reference in norms():
        x = (scale * torch.randn(2, 5, WIDTH) + scale).requires_grad_()
        y = x.detach().clone().requires_grad_()
        out, expected = norm(x), reference(y)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        upstream = torch.randn_like(out)
        out.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(x.grad, y.grad, atol=1e-5 / scale, rtol=1e-4)


def test_statistics_are_fp32_under_bf16() -> None:
    """The mean of squares of a large bf16 vector with one long channel: summed in bf16 the others would be lost."""
    for norm, reference in norms(torch.bfloat16):
        x = torch.full((1, WIDTH), 1.0)
        x[0, 0] = 100.0
        x = x.bfloat16()
        out = norm(x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), reference(x.float()), atol=2e-2, rtol=1.6e-2)


def test_the_weight_is_multiplied_after_rounding_as_llama_does() -> None:
    norm = RMSNorm(WIDTH, EPS).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(WIDTH))
    x = torch.randn(50, WIDTH).bfloat16()
    unit = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    assert torch.equal(norm(x), norm.weight * unit.bfloat16())
    assert not torch.equal(norm(x), (norm.weight.float() * unit).bfloat16())


def test_the_configuration_chooses_the_norm_and_its_eps() -> None:
    for name, kind in (("rmsnorm", RMSNorm), ("layernorm", LayerNorm)):
        norm = build_norm(ModelConfig(norm=name, d_model=WIDTH, norm_eps=0.25))
        assert type(norm) is kind
        assert norm.eps == 0.25
        assert norm.weight.tolist() == [1.0] * WIDTH
