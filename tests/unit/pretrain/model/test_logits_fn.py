import torch

from pretrain.config.schema import ModelConfig
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn, without_padding

LOGITS_B1V = torch.tensor([[[1.0, 2.0, 3.0, 9.0]]])


def logits_fn(config: ModelConfig) -> LogitsFn:
    return LogitsFn(lambda tokens_BT, cache: LOGITS_B1V, config, torch.float32, torch.device("cpu"))


def cache(config: ModelConfig) -> KVCache:
    return KVCache(config, 1, 1, dtype=torch.float32, device=torch.device("cpu"))


def test_rows_that_pad_the_vocabulary_are_never_chosen() -> None:
    config = ModelConfig(vocab_size=4, n_layers=1, d_model=8, n_heads=1)
    limited = without_padding(logits_fn(config), 3).logits(torch.zeros(1, 1, dtype=torch.long), cache(config))
    assert limited.tolist() == [[[1.0, 2.0, 3.0, float("-inf")]]]
    assert LOGITS_B1V[0, 0, 3] == 9


def test_a_vocabulary_without_padding_is_left_alone() -> None:
    whole = logits_fn(ModelConfig(vocab_size=4))
    assert without_padding(whole, 4) is whole
