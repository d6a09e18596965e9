"""Example task: which of four texts continues the context? `python -m pretrain.evaluation.example_task TEXTS DIR`.

Made from held-out texts, without a download. The wrong endings are continuations of other contexts; chance is 25 %.

`acc` favors endings that are likely in any context. `acc_mutual_info` corrects for that: it picks the ending with the largest
log p(ending | context) - log p(ending), as in Holtzman et al. 2021, https://arxiv.org/abs/2104.08315.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.errors import UserError

NAME = "continuations"
CONTEXT, ENDING, CHOICES = 400, 80, 4  # characters, characters, answers per question
YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{endings}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


def questions(texts: Sequence[str], count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Up to `count` questions with one right ending each. Words are not cut. Raises UserError for too little text."""
    rng = random.Random(seed)
    pairs = [pair for text in texts for pair in _pairs(text)]
    if len({ending for _, ending in pairs}) < CHOICES:
        raise UserError(f"{len(pairs)} pairs of context and ending are too few", hint="give more or longer texts")
    rng.shuffle(pairs)
    for number, (context, ending) in enumerate(pairs[:count]):
        others = rng.sample([other for _, other in pairs if other != ending], CHOICES - 1)
        answer = number % CHOICES
        yield {"context": context, "endings": [*others[:answer], ending, *others[answer:]], "answer": answer}


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    while start + CONTEXT + 2 * ENDING < len(text):
        middle = text.find(" ", start + CONTEXT)
        end = text.find(" ", middle + ENDING)
        if middle < 0 or end < 0:
            return
        yield text[start:middle], text[middle:end]
        start = end


def write_task(texts: Path, folder: Path, count: int = 100) -> None:
    """Write the questions and the YAML file of the task. `texts` is a .jsonl file with the key `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    with texts.open(encoding="utf-8") as lines:
        try:
            documents = [str(json.loads(line)["text"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{texts}: a line is not a JSON object with `text`: {error!r}") from None
    found = list(questions(documents, count))
    data = folder / f"{NAME}.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in found), encoding="utf-8")
    (folder / f"{NAME}.yaml").write_text(YAML.format(name=NAME, data=json.dumps(str(data))), encoding="utf-8")
    print(f"{len(found)} questions: pretrain evaluate RUN --tasks {NAME} --tasks-path {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pretrain.evaluation.example_task TEXTS.jsonl DIR")
    try:
        write_task(Path(sys.argv[1]), Path(sys.argv[2]))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
