import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.report.numbers import format_age, format_count, format_megabytes, format_seconds, short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7.4, "7"),
        (999, "999"),
        (1_000, "1.0k"),
        (1_234, "1.2k"),
        (5_600_000, "5.6M"),
        (6.74e9, "6.7B"),
        (2e12, "2.0T"),
        (3e15, "3000.0T"),
    ],
)
def test_counts_are_short(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize("value", [999.5, 999_950, 999_999_999])
def test_counts_never_show_a_thousand_of_a_unit(value: float) -> None:
    assert "1000" not in format_count(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3_599.6, "1:00:00"),
        (7_384, "2:03:04"),
        (360_000, "100:00:00"),
    ],
)
def test_seconds_are_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(0, 1e7))
def test_a_clock_can_be_read_back(seconds: float) -> None:
    total = 0
    for part in format_seconds(seconds).split(":"):
        total = 60 * total + int(part)
    assert total == round(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7_384, "2 h"), (86_399, "23 h"), (200_000, "2 d")]
)
def test_an_age_is_short(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1500, "1.5k"), (2e6, "2M"), (0.00012, "1.2e-4"), (-3e9, "-3G"), (0.25, "0.25"), (1e15, "1000T")],
)
def test_numbers_on_an_axis_have_four_digits(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_bytes_are_megabytes() -> None:
    assert (format_megabytes(1_234_567_890), format_megabytes(4_200, 2)) == ("1,234.6 MB", "0.00 MB")
