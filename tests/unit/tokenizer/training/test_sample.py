import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pretrain.errors import DataError
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.training import sample
from tokenizer.training.budget import Budget, SampleSource
from tokenizer.training.sample import SourceSample, draw_samples, drop_held_out_duplicates


def write_jsonl(path: Path, numbers: Sequence[int]) -> Path:
    """Documents of 1,000 bytes that begin with their number."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        for number in numbers:
            file.write(json.dumps({"text": f"{number:08d}" + "é" * 496}, ensure_ascii=False) + "\n")
    return path


def draw(*paths: Path, total: int, held_out: int = 0, seed: int = 0, **sources: Path) -> list[SourceSample]:
    named = [SampleSource(name, (str(path),)) for name, path in sources.items()]
    corpus = [SampleSource("corpus", tuple(map(str, paths)))] if paths else []
    return draw_samples(
        [*corpus, *named],
        ReadOptions(),
        budget=Budget(total, {}),
        held_out_bytes=held_out,
        seed=seed,
        problems=RejectionLog(),
        max_bad_documents=0,
    )


def numbers(texts: Sequence[str]) -> list[int]:
    return [int(text[:8]) for text in texts]


def test_a_sample_keeps_to_its_budget_and_follows_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", range(1_000))
    [first] = draw(path, total=200_000, held_out=50_000)
    assert first.bytes == 200_000 and first.documents == 200 == len(first.digests)
    assert len(first.held_out) == 50 and not set(first.held_out) & set(first.chunks)
    assert first.whole and first.documents_read == 1_000
    [again], [other] = draw(path, total=200_000, held_out=50_000), draw(path, total=200_000, held_out=50_000, seed=1)
    assert (again.chunks, again.held_out) == (first.chunks, first.held_out)
    assert sorted(other.chunks) != sorted(first.chunks)
    # Uniform over the corpus: each quarter gives about a quarter.
    drawn = numbers(first.chunks)
    assert all(35 <= sum(low <= number < low + 250 for number in drawn) <= 65 for low in (0, 250, 500, 750))


def test_a_sample_does_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = (write_jsonl(folder / "a.jsonl", range(300)) for folder in (tmp_path, tmp_path / "elsewhere"))
    assert draw(here, total=50_000)[0].chunks == draw(there, total=50_000)[0].chunks


def test_a_small_budget_is_drawn_from_places_all_over_a_large_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SMALLEST_TASK_BYTES", 1 << 20)
    # 40 MB, of which 16 times the budget is read: some 1.6 MB.
    path = write_jsonl(tmp_path / "a.jsonl", range(40_000))
    [drawn] = draw(path, total=100_000)
    assert not drawn.whole and 1_600 <= drawn.documents_read < 2_000
    assert drawn.tasks_read == drawn.tasks == 39
    places = numbers(drawn.chunks)
    assert len(places) == 100 and all(
        sum(low <= n < low + 10_000 for n in places) > 10 for low in range(0, 40_000, 10_000)
    )


def test_of_more_tasks_than_places_only_some_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "PLACES", 8)
    monkeypatch.setattr(sample, "SMALLEST_TASK_BYTES", 1 << 20)
    path = write_jsonl(tmp_path / "a.jsonl", range(20_000))
    [drawn] = draw(path, total=100_000)
    assert drawn.tasks == 20 and drawn.tasks_read == 8
    assert len(numbers(drawn.chunks)) == 100


def test_compressed_files_each_give_a_stretch_and_more_where_it_does_not_suffice(tmp_path: Path) -> None:
    # One file holds nearly everything: a stretch of each is not enough, and the large one gets another turn.
    paths = [
        write_jsonl(tmp_path / f"{n}.jsonl.gz", range(n * 10_000, n * 10_000 + (2_000 if n == 1 else 2)))
        for n in range(4)
    ]
    [drawn] = draw(*paths, total=100_000)
    assert drawn.documents_read >= 1_600 and drawn.bytes == 100_000
    # What was read in the first turn is not read again in the second.
    assert len(set(numbers(drawn.chunks))) == 100
    seen: set[int] = set()
    [everything] = draw(*paths, total=10**7)
    for number in numbers(everything.chunks):
        assert number not in seen
        seen.add(number)
    assert len(seen) == 2_006 and everything.whole


def test_a_source_below_its_budget_keeps_a_twentieth_for_the_report_and_one_document_is_never_held_out(
    tmp_path: Path,
) -> None:
    [drawn] = draw(write_jsonl(tmp_path / "a.jsonl", range(100)), total=10**6, held_out=10**6)
    assert len(drawn.chunks) == 95 and len(drawn.held_out) == 5
    [single] = draw(write_jsonl(tmp_path / "b.jsonl", [7]), total=10**6, held_out=10**6)
    assert numbers(single.chunks) == [7] and single.held_out == []


def test_the_last_document_is_cut_where_the_budget_ends_and_its_rest_is_not_held_out(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"{number} " + "word " * 40_000)
    [drawn] = draw(tmp_path, total=250_000, held_out=1_000)
    assert drawn.documents == 2 and 250_000 <= drawn.bytes <= 260_000
    first = {text[0] for text in drawn.chunks if text[0].isdigit()}
    assert len(first) == 2 and not first & {text[0] for text in drawn.held_out}


def test_sources_share_by_their_sizes_and_keep_to_their_own(tmp_path: Path) -> None:
    large = write_jsonl(tmp_path / "l.jsonl", range(900))
    small = write_jsonl(tmp_path / "s.jsonl", range(10_000, 10_300))
    drawn = {part.name: part for part in draw(total=400_000, large=large, small=small)}
    assert numbers(drawn["large"].chunks) and max(numbers(drawn["large"].chunks)) < 900
    assert min(numbers(drawn["small"].chunks)) >= 10_000
    assert drawn["large"].bytes + drawn["small"].bytes == pytest.approx(400_000, abs=2_000)
    assert drawn["large"].bytes == pytest.approx(3 * drawn["small"].bytes, rel=0.02)


def test_held_out_documents_whose_text_is_in_a_sample_are_left_out_and_counted(tmp_path: Path) -> None:
    # Every text twice.
    path = write_jsonl(tmp_path / "a.jsonl", [number % 100 for number in range(200)])
    other = write_jsonl(tmp_path / "b.jsonl", range(50))
    drawn = draw(total=200_000, held_out=100_000, first=path, second=other)
    before = sum(len(part.held_out) for part in drawn)
    dropped = drop_held_out_duplicates(drawn)
    sampled = {chunk for part in drawn for chunk in part.chunks}
    assert dropped > 0 and dropped == before - sum(len(part.held_out) for part in drawn)
    assert not any(text in sampled for part in drawn for text in part.held_out)


def test_bad_documents_are_counted_once_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbroken\n{"txt": "a"}\n' * 5)
    problems = RejectionLog()
    options = {"budget": Budget(10**6, {}), "held_out_bytes": 0, "seed": 0, "problems": problems}
    [drawn] = draw_samples([SampleSource("a", (str(path),))], ReadOptions(), max_bad_documents=10, **options)
    assert drawn.documents == 5 and problems.counts == {"broken JSON": 5, "no text field": 5}
    with pytest.raises(DataError, match="more than max_bad_documents=9"):
        draw_samples(
            [SampleSource("a", (str(path),))],
            ReadOptions(),
            max_bad_documents=9,
            **{**options, "problems": RejectionLog()},
        )


def test_conditions_and_fields_choose_what_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"meta": {"body": f"t{n}"}, "lang": "de" if n % 2 else "en"}) + "\n" for n in range(10))
    )
    options = ReadOptions(text_field="meta.body", where=("lang=de",))
    problems = RejectionLog()
    [drawn] = draw_samples(
        [SampleSource("a", (str(path),))],
        options,
        budget=Budget(10**6, {}),
        held_out_bytes=0,
        seed=0,
        problems=problems,
        max_bad_documents=0,
    )
    assert sorted(drawn.chunks) == ["t1", "t3", "t5", "t7", "t9"]
    assert sum(problems.counts.values()) == 5
