"""A task to try: which of four texts goes on from the one before? `python -m pretrain.evaluation.example_task TEXTS DIR`.

It is cut from held-out texts, so there is nothing to download: from each place two pieces in a row, a beginning and what
follows it there; what follows elsewhere are the wrong answers. Guessing gives 25 %.

Which ending is likely depends more on the ending than on the beginning: a model that has learned little takes the one that
is likely anywhere. `acc_mutual_info` takes the one that the beginning makes likelier, log p(ending | beginning) - log
p(ending), as in Holtzman et al. 2021, https://arxiv.org/abs/2104.08315.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.errors import UserError

NAME = "continuations"
CONTEXT, ENDING, CHOICES = 400, 80, 4  # characters, characters, answers of a question
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
    """`count` questions, each with one right ending. Words are not cut."""
    draw = random.Random(seed)
    pieces = [piece for text in texts for piece in _pieces(text)]
    if len({ending for _, ending in pieces}) < CHOICES:
        raise UserError(f"{len(pieces)} pieces of text are too few for questions", hint="more or longer texts")
    draw.shuffle(pieces)
    for number, (context, ending) in enumerate(pieces[:count]):
        others = draw.sample([other for _, other in pieces if other != ending], CHOICES - 1)
        answer = number % CHOICES
        yield {"context": context, "endings": [*others[:answer], ending, *others[answer:]], "answer": answer}


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    while start + CONTEXT + 2 * ENDING < len(text):
        middle = text.find(" ", start + CONTEXT)
        end = text.find(" ", middle + ENDING)
        if middle < 0 or end < 0:
            return
        yield text[start:middle], text[middle:end]
        start = end


def write_task(texts: Path, folder: Path, count: int = 100) -> None:
    """Write the questions and the file that tells the harness about them; `texts` is a .jsonl with the key `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    with texts.open(encoding="utf-8") as lines:
        try:
            documents = [str(json.loads(line)["text"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{texts}: a line is no JSON object with `text`: {error!r}") from None
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
