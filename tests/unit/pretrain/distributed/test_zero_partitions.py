import pytest
import torch

from pretrain.distributed.zero_partitions import Partition, init_optimizer_state


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_moments_have_the_shape_that_the_optimizer_compares_and_are_filled_flat() -> None:
    """CUDA's fused AdamW refuses moments whose sizes differ from the parameter's; the CPU's does not check."""
    part = Partition(torch.zeros(6), {}, [], torch.Size([2, 3]))
    moments = ("exp_avg", "exp_avg_sq")
    init_optimizer_state(part, moments, optimizer_steps=4)
    assert float(part.state["step"]) == 4
    for moment in moments:
        assert part.state[moment].shape == (2, 3)
        part.flat(moment).copy_(torch.arange(6))
        assert part.state[moment].tolist() == [[0, 1, 2], [3, 4, 5]]
