"""What llama.cpp makes of a GGUF file: logits and token ids, asked in a process of its own.

    python gguf_llama_cpp.py MODEL.gguf QUESTIONS.json ANSWERS.npz

llama.cpp ends its process where it meets a file that it does not like, which must not be the process of an export. The
program below needs numpy and llama-cpp-python only, so that any interpreter that has them will do:
PRETRAIN_LLAMA_CPP_PYTHON names one; without it, it is this one where llama-cpp-python is installed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INTERPRETER = "PRETRAIN_LLAMA_CPP_PYTHON"
TIMEOUT_S = 3600.0
LINES_OF_BLAME = 5


class LlamaCppError(Exception):
    """llama.cpp did not take the file; its last lines say why."""


def llama_cpp_interpreter() -> str | None:
    """The Python that can run llama.cpp, None where there is none."""
    named = os.environ.get(INTERPRETER)
    return named or (sys.executable if find_spec("llama_cpp") else None)


def ask_llama_cpp(
    interpreter: str, file: Path, *, token_rows: Sequence[Sequence[int]], texts: Sequence[str] = ()
) -> tuple[list[Any], list[list[int]]]:
    """Logits (T, V) as arrays of fp32, one for each row of ids, and the ids of each text, control symbols not matched.

    Raises LlamaCppError.
    """
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "questions.json"), Path(folder, "answers.npz")
        questions.write_text(json.dumps({"rows": [list(row) for row in token_rows], "texts": list(texts)}))
        command = [interpreter, str(Path(__file__).resolve()), str(file), str(questions), str(answers)]
        # Away from the folder of this file, whose gguf.py and others must not hide packages of the same name.
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, timeout=TIMEOUT_S, check=False, env=_environment()
            )
        except OSError as error:
            raise LlamaCppError(f"{interpreter} ({INTERPRETER}) cannot be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise LlamaCppError(f"it did not end within {TIMEOUT_S:.0f} s") from None
        if ended.returncode != 0 or not answers.exists():
            raise LlamaCppError(f"it ended with {ended.returncode}:\n{_blame(ended.stderr)}")
        with numpy.load(answers, allow_pickle=False) as found:
            logits = [found[f"logits_{number}"] for number in range(len(token_rows))]
            flat, lengths = found["ids"].tolist(), found["lengths"].tolist()
    ids, begin = [], 0
    for length in lengths:
        ids.append(flat[begin : begin + length])
        begin += length
    return logits, ids


def _blame(said: str) -> str:
    """The lines that tell of an error, of the hundreds that llama.cpp prints; else the last ones."""
    lines = said.strip().splitlines()
    telling = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    return "\n".join((telling or lines)[-LINES_OF_BLAME:])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _answer(file: str, questions: str, answers: str) -> None:
    """The program: keys and values in fp32, no flash attention, so that only the weights are rounded."""
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]
    import numpy

    asked = json.loads(Path(questions).read_text())
    longest = max(map(len, asked["rows"]), default=1)
    model = llama_cpp.Llama(
        file,
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_gpu_layers=0,
        n_threads=1,
        verbose=True,  # or it does not say what is wrong with a file
    )
    found: dict[str, Any] = {}
    for number, row in enumerate(asked["rows"]):
        model.reset()
        model.eval(row)
        found[f"logits_{number}"] = numpy.array(model.scores[: len(row)], dtype=numpy.float32)
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
    found["ids"] = numpy.array([token for row in ids for token in row], dtype=numpy.int64)
    found["lengths"] = numpy.array([len(row) for row in ids], dtype=numpy.int64)
    numpy.savez(answers, **found)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
