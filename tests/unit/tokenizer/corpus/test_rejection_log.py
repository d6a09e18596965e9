import json

import pytest

from pretrain.errors import DataError
from tokenizer.corpus.readers.rejections import EMPTY, Rejection
from tokenizer.corpus.rejection_log import DUPLICATE, RejectionLog


def log_of(*found: tuple[str, str]) -> RejectionLog:
    """One rejection a (file, reason), numbered by line."""
    log = RejectionLog()
    for line, (file, reason) in enumerate(found, 1):
        log.add(file, Rejection(f"{file}:{line}", reason, "why"))
    return log


def test_files_and_reasons_are_counted_apart_and_the_first_is_named() -> None:
    log = log_of(("a", "broken"), ("b", "broken"), ("a", EMPTY), ("a", "broken"))
    assert log.counts == {"broken": 3, EMPTY: 1}
    lines = [json.loads(line) for line in log.lines().splitlines()]
    assert lines[0] == {"file": "a", "reason": "broken", "count": 2, "place": "a:1", "detail": "why"}
    assert [(line["file"], line["reason"], line["count"]) for line in lines[1:]] == [
        ("b", "broken", 1),
        ("a", EMPTY, 1),
    ]


def test_what_says_nothing_bad_has_no_limit() -> None:
    log = log_of(*[("a", EMPTY)] * 5, *[("a", DUPLICATE)] * 5, ("a", "broken"))
    assert log.bad == 1
    log.check_limits(1, 0)
    with pytest.raises(DataError, match="more than max_bad_documents=0") as caught:
        log.check_limits(0, 0)
    assert "a:11: broken (why)" in str(caught.value) and "a:1:" not in str(caught.value)


def test_the_first_ten_bad_documents_are_named_also_over_several_tasks() -> None:
    whole = log_of(*[("a", "broken")] * 7)
    whole.merge(log_of(*[("b", "broken")] * 7))
    with pytest.raises(DataError) as caught:
        whole.check_limits(13, 0)
    named = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert named == [f"- a:{n}: broken (why)" for n in range(1, 8)] + [f"- b:{n}: broken (why)" for n in range(1, 4)]
    assert whole.bad == 14 and [entry.count for entry in whole] == [7, 7]


def test_merging_adds_up_and_leaves_the_parts_as_they_are() -> None:
    first, second = log_of(("a", "broken")), log_of(("a", "broken"), ("c", EMPTY))
    whole = RejectionLog()
    whole.merge(first)
    whole.merge(second)
    assert whole.counts == {"broken": 2, EMPTY: 1} and first.counts == {"broken": 1}
    assert next(iter(whole)).place == "a:1"


def test_json_gives_back_the_same() -> None:
    log = log_of(*[("a", "broken")] * 12, ("b", EMPTY))
    again = RejectionLog.from_json(json.loads(json.dumps(log.to_json())))
    assert again.to_json() == log.to_json()
    assert (again.bad, again.summary()) == (12, log.summary())
    assert RejectionLog().summary() == ""
