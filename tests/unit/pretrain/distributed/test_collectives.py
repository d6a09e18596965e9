import pytest
import torch
import torch.distributed as dist

from pretrain.distributed.collectives import end_group, start_group, sum_over_ranks
from pretrain.distributed.world import World


def test_a_world_of_one_forms_a_group_beside_a_left_over_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        **{"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1"},
        **{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    }.items():
        monkeypatch.setenv(name, value)
    start_group(World(), torch.device("cpu"), timeout_minutes=0.1)
    assert sum_over_ranks([2.0], torch.device("cpu")) == [2.0]
    end_group()
    assert not dist.is_initialized()
