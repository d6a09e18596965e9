"""A model that has no weights of its own: they come when a module runs, and go when it has."""

import torch
from torch import Tensor

from pretrain.convert.verify.streamed import streamed
from pretrain.model.decoder import Decoder
from tests.support.weight_source import decoder_of, memory_source, small_model


def real_elements(model: Decoder) -> int:
    """Of parameters that are in memory now."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta)


def test_the_logits_are_those_of_the_whole_model_and_one_module_is_in_memory() -> None:
    for tied in (False, True):
        source = memory_source(None, small_model(tie_embeddings=tied, attention_bias="all"))
        with torch.device("meta"):
            model = Decoder(source.config.model).eval()
        largest, asked = 0, []

        def load(name: str, source=source, model=model, asked=asked) -> Tensor:  # type: ignore[no-untyped-def]
            nonlocal largest
            asked.append(name)
            tensor = source.tensor(name)
            largest = max(largest, real_elements(model) + tensor.numel())
            return tensor

        tokens_BT = torch.arange(30)[None]
        with torch.no_grad(), streamed(model, load):
            logits_BTV = model(tokens_BT)
        assert torch.equal(logits_BTV, decoder_of(source)(tokens_BT))
        assert largest == source.config.model.vocab_size * source.config.model.d_model
        assert real_elements(model) == 0
        # Each is read once, but for a tied head, which is read as the embedding once more.
        assert sorted(asked) == sorted([*source.tensors, *(["embedding.tokens.weight"] if tied else [])])


def test_outside_of_the_context_nothing_is_loaded() -> None:
    with torch.device("meta"):
        model = Decoder(small_model()).eval()
    with torch.no_grad(), streamed(model, lambda name: torch.zeros(model.get_parameter(name).shape)):
        assert not model(torch.arange(4)[None]).is_meta
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
