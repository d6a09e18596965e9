import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.check import find_conflicts
from pretrain.config.schema import BatchConfig, Config, ScheduleConfig
from pretrain.optim.schedule import batch_levels, batch_size, lr_fraction, samples_between


def curve(schedule: ScheduleConfig) -> list[float]:
    """Fractions of steps 1 … total."""
    return [lr_fraction(step, schedule) for step in range(1, schedule.total_steps + 1)]


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    kind = draw(st.sampled_from(["cosine", "linear", "wsd", "constant"]))
    total = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, total))
    decay = draw(st.integers(0, total - warmup)) if kind == "wsd" else 0
    schedule = ScheduleConfig(kind, total, warmup, decay, draw(st.floats(0, 1)))
    assert find_conflicts(Config(schedule=schedule)) == []
    return schedule


@given(schedules())
def test_warmup_rises_by_equal_steps_to_the_peak(schedule: ScheduleConfig) -> None:
    warmup = schedule.warmup_steps
    assert curve(schedule)[:warmup] == [step / warmup for step in range(1, warmup + 1)]


@given(schedules())
def test_after_the_warmup_it_never_rises_and_never_leaves_its_range(schedule: ScheduleConfig) -> None:
    after = curve(schedule)[max(0, schedule.warmup_steps - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))
    assert all(schedule.final_lr_fraction - 1e-12 <= value <= 1 for value in after)


@given(schedules())
def test_the_last_step_has_the_final_fraction(schedule: ScheduleConfig) -> None:
    if schedule.kind == "constant" or schedule.warmup_steps == schedule.total_steps:
        assert curve(schedule)[-1] == 1.0
    else:
        assert math.isclose(curve(schedule)[-1], schedule.final_lr_fraction, abs_tol=1e-12)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = ScheduleConfig("cosine", total_steps=110, warmup_steps=10, final_lr_fraction=0.2)
    assert math.isclose(lr_fraction(60, schedule), 0.6)
    assert math.isclose(lr_fraction(35, schedule), 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_linear_falls_by_equal_steps() -> None:
    schedule = ScheduleConfig("linear", total_steps=14, warmup_steps=4, final_lr_fraction=0.0)
    assert curve(schedule)[4:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_wsd_is_flat_until_the_decay() -> None:
    schedule = ScheduleConfig("wsd", total_steps=20, warmup_steps=2, decay_steps=5, final_lr_fraction=0.0)
    assert curve(schedule)[1:15] == [1.0] * 14
    assert curve(schedule)[15:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_wsd_decays_over_a_tenth_unless_told() -> None:
    assert curve(ScheduleConfig("wsd", 200, 10, 0, 0.1)) == curve(ScheduleConfig("wsd", 200, 10, 20, 0.1))


def test_without_a_warmup_the_first_step_is_not_zero() -> None:
    assert lr_fraction(1, ScheduleConfig("constant", 10, 0)) == 1.0
    assert lr_fraction(1, ScheduleConfig("linear", 10, 0, final_lr_fraction=0.0)) == 0.9


@given(schedules(), st.integers(1, 100))
def test_steps_beyond_the_end_keep_the_last_value(schedule: ScheduleConfig, beyond: int) -> None:
    assert lr_fraction(schedule.total_steps + beyond, schedule) == pytest.approx(
        schedule.final_lr_fraction if schedule.kind != "constant" else 1.0
    )


# --- batch size -------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> BatchConfig:
    growths, increment = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    start = draw(st.integers(1, 20))
    return BatchConfig(
        global_batch_size=start + growths * increment,
        micro_batch_size=1,
        ramp_start_size=start,
        ramp_increment=increment,
        ramp_steps=draw(st.integers(growths, 200)),
    )


@given(batches())
def test_a_batch_grows_in_equal_steps_and_has_its_full_size_after_the_ramp(batch: BatchConfig) -> None:
    sizes = [batch_size(step, batch) for step in range(batch.ramp_steps + 3)]
    assert sizes[0] == batch.ramp_start_size
    assert sizes[batch.ramp_steps :] == [batch.global_batch_size] * 3
    assert sizes[batch.ramp_steps - 1] == batch.global_batch_size - batch.ramp_increment
    assert {after - before for before, after in pairwise(sizes)} <= {0, batch.ramp_increment}
    held = [sizes[: batch.ramp_steps].count(size) for _, size in batch_levels(batch)[:-1]]
    assert max(held) - min(held) <= 1


@given(batches(), st.integers(0, 250), st.integers(0, 250))
def test_samples_are_the_sum_of_the_batches(batch: BatchConfig, first: int, steps: int) -> None:
    assert samples_between(first, first + steps, batch) == sum(
        batch_size(step, batch) for step in range(first, first + steps)
    )


def test_without_a_ramp_every_batch_is_full() -> None:
    assert batch_levels(BatchConfig(32, 8)) == [(0, 32)]
    assert samples_between(3, 10, BatchConfig(32, 8)) == 7 * 32
