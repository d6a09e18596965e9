from pathlib import Path

import pytest

from pretrain.errors import DataError
from tokenizer.training.budget import Budget, SampleSource, parse_size, parse_source_bytes, parse_sources


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        ("a b", {"corpus": ("a", "b")}),
        ("de=a b fr=c", {"de": ("a", "b"), "fr": ("c",)}),
        ("x de=a fr=b de=c", {"corpus": ("x",), "de": ("a", "c"), "fr": ("b",)}),
        (
            "s3://b/lang=de/x ./lang=de web-1.2=s3://b/k=v",
            {"corpus": ("s3://b/lang=de/x", "./lang=de"), "web-1.2": ("s3://b/k=v",)},
        ),
        ("https://h/a?b=c /data/a=b", {"corpus": ("https://h/a?b=c", "/data/a=b")}),
    ],
)
def test_a_name_begins_a_source(arguments: str, sources: dict[str, tuple[str, ...]]) -> None:
    assert parse_sources(arguments.split()) == [SampleSource(name, paths) for name, paths in sources.items()]


def test_a_folder_that_reads_as_a_named_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=de").mkdir()
    with pytest.raises(
        DataError, match=r"is ambiguous: a file or folder, or the source lang at de\n  hint: write ./lang=de"
    ):
        parse_sources(["lang=de"])
    assert parse_sources(["./lang=de"]) == [SampleSource("corpus", ("./lang=de",))]
    with pytest.raises(DataError, match="no path follows the name"):
        parse_sources(["de="])


def test_what_is_not_given_is_shared_by_size() -> None:
    sizes = {"a": 600, "b": 200, "c": 7}
    assert Budget(1_000, {}).divide({"a": 600, "b": 200}) == {"a": 750, "b": 250}
    assert Budget(1_000, {"c": 200}).divide(sizes) == {"a": 600, "b": 200, "c": 200}
    assert Budget(10, {"a": 600, "b": 0, "c": 5}).divide(sizes) == {"a": 600, "b": 0, "c": 5}


def test_a_budget_that_leaves_nothing_and_one_for_nobody_are_refused() -> None:
    with pytest.raises(DataError, match="takes 1,000 of 1,000 bytes, and leaves nothing for b, c"):
        Budget(1_000, {"a": 1_000}).divide({"a": 1, "b": 1, "c": 1})
    with pytest.raises(DataError, match="there is no source 'd', only a, b"):
        Budget(1_000, {"d": 1}).divide({"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("100_000", 100_000),
        ("100MB", 10**8),
        ("1.5G", 15 * 10**8),
        ("64MiB", 1 << 26),
        ("2 kB", 2_000),
        ("3KiB", 3072),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "MB", "1e6", "1 apple", "10mb", "0.1", "nan", "1.5.2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is not a number of bytes"):
        parse_size(text)


def test_budgets_of_sources() -> None:
    assert parse_source_bytes(["a=1MB", "b-c=5"]) == {"a": 10**6, "b-c": 5}
    with pytest.raises(DataError, match="not NAME=BYTES"):
        parse_source_bytes(["5MB"])
    with pytest.raises(DataError, match="has a budget already"):
        parse_source_bytes(["a=1", "a=2"])
