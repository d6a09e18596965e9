from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tokenizer.models.splitting import split_at_spaces, split_hard, split_words

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.text(alphabet="ab \n\u2581漢", max_size=200), st.integers(1, 20))
@example("a b\u2581 c  d", 1)
def test_splitting_loses_nothing_and_splits_only_before_a_space_after_a_non_space(text: str, size: int) -> None:
    parts = split_at_spaces(text, size)
    assert "".join(parts) == text
    for before, after in pairwise(parts):
        assert after[0] == " " and before[-1] not in " \u2581"
        assert len(before) >= size
    hard = split_hard(text, size)
    assert "".join(hard) == text
    assert all(len(part) <= 2 * size for part in hard)


@given(ANY_TEXT | st.text(alphabet="ab \n\u2581漢", max_size=200))
@example("a\u2581 b \u2581  c\u2581\u2581 \u2581d ")
def test_words_are_the_parts_of_a_split_and_an_empty_one(text: str) -> None:
    assert split_words(text) == [part for part in split_at_spaces(text, 1) if part] + [""]


def test_the_words_of_a_long_text_cost_one_pass() -> None:
    # Backtracking over these would take hours.
    for unit in (" ", "\u2581", "\u2581 ", "a\u2581 ", "a", "a\u2581"):
        text = unit * 300_000
        assert "".join(split_words(text)) == text
