"""Stages of a run: at the step that the configuration names, whatever was skipped before it."""

import pytest

from pretrain.config import Config
from pretrain.config.schema import BatchConfig, DataConfig, SourceConfig, StageConfig
from pretrain.run_folder import SkippedRange
from pretrain.training.startup.opened_data import plan_stages


@pytest.mark.parametrize(("first", "shift"), [(80, 16), (90, 16), (150, 16), (159, 16), (160, 0), (20, 0)])
def test_a_stage_begins_at_its_step_after_any_skipped_range(first: int, shift: int) -> None:
    data = DataConfig(
        train={"a": SourceConfig("a"), "b": SourceConfig("b")},
        stages={"late": StageConfig(start_step=10, weights={"b": 1.0})},
    )
    config = Config(data=data, batch=BatchConfig(global_batch_size=16, micro_batch_size=4))
    past = {"step": 5, "samples": 80, "order": {"stages": [{"start": 0}]}}
    assert plan_stages(config, past, [SkippedRange(first, 16, 3, "nan")])[1].start == 160 + shift


def test_a_range_that_began_before_the_checkpoint_shifts_a_stage_by_its_rest() -> None:
    data = DataConfig(
        train={"a": SourceConfig("a")},
        stages={"late": StageConfig(start_step=10, weights={"a": 1.0})},
    )
    config = Config(data=data, batch=BatchConfig(global_batch_size=16, micro_batch_size=4))
    past = {"step": 5, "samples": 80, "order": {"stages": [{"start": 0}]}}
    assert plan_stages(config, past, [SkippedRange(70, 20, 3, "nan")])[1].start == 170
