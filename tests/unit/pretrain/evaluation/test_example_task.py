import json
from pathlib import Path

import pytest
import yaml

from pretrain.errors import UserError
from pretrain.evaluation.example_task import CHOICES, CONTEXT, ENDING, questions, write_task

WORDS = [" ".join(f"w{number}-{place}" for place in range(1_000)) for number in range(4)]


def test_the_right_ending_is_what_follows_and_the_others_come_from_elsewhere() -> None:
    found = list(questions(WORDS, 40))
    assert len(found) == 40
    for question in found:
        context, endings, answer = question["context"], question["endings"], question["answer"]
        assert len(endings) == len(set(endings)) == CHOICES
        follows = [any(context + ending in text for text in WORDS) for ending in endings]
        assert [place for place, right in enumerate(follows) if right] == [answer]
        assert CONTEXT <= len(context) < CONTEXT + 10
        assert all(ENDING <= len(ending) < ENDING + 10 and ending.startswith(" ") for ending in endings)
    assert {question["answer"] for question in found} == set(range(CHOICES))


def test_the_same_texts_make_the_same_questions() -> None:
    assert list(questions(WORDS, 10)) == list(questions(WORDS, 10))
    assert list(questions(WORDS, 10)) != list(questions(WORDS, 10, seed=1))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        list(questions([WORDS[0][:2_000]], 10))


def test_the_file_of_the_task_names_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    write_task(texts, tmp_path / "tasks", count=12)
    task = yaml.safe_load((tmp_path / "tasks/continuations.yaml").read_text())
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(questions(WORDS, 12))
    assert (task["task"], task["test_split"], task["doc_to_choice"]) == ("continuations", "test", "{{endings}}")
    assert f"--tasks continuations --tasks-path {tmp_path / 'tasks'}" in capsys.readouterr().out
