"""llama.cpp's logits and token ids for a GGUF file, computed in a separate process.

    python llama_cpp.py MODEL.gguf QUESTIONS.json ANSWERS.npz

llama.cpp aborts its process on a file that it rejects, so it must not run in the export's process. The program below only
needs numpy and llama-cpp-python. PRETRAIN_LLAMA_CPP_PYTHON names its interpreter; the default is this interpreter, if
llama-cpp-python is installed.
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
ERROR_LINES = 5


class LlamaCppError(Exception):
    """llama.cpp rejected the file; the message holds its last lines."""


def llama_cpp_interpreter() -> str | None:
    """The Python interpreter that has llama-cpp-python; None if there is none."""
    named = os.environ.get(INTERPRETER)
    return named or (sys.executable if find_spec("llama_cpp") else None)


def ask_llama_cpp(
    interpreter: str, file: Path, *, token_rows: Sequence[Sequence[int]], texts: Sequence[str] = ()
) -> tuple[list[Any], list[list[int]]]:
    """fp32 logits (T, V) for each row of ids, and the ids of each text with control symbols as plain text.

    Raises LlamaCppError.
    """
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "questions.json"), Path(folder, "answers.npz")
        questions.write_text(json.dumps({"rows": [list(row) for row in token_rows], "texts": list(texts)}))
        command = [interpreter, str(Path(__file__).resolve()), str(file), str(questions), str(answers)]
        # Not run in the folder of this file, whose modules could hide packages of the same name.
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, timeout=TIMEOUT_S, check=False, env=_environment()
            )
        except OSError as error:
            raise LlamaCppError(f"{interpreter} ({INTERPRETER}) cannot be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise LlamaCppError(f"no answer within {TIMEOUT_S:.0f} s") from None
        if ended.returncode != 0 or not answers.exists():
            raise LlamaCppError(f"exit code {ended.returncode}:\n{_error_lines(ended.stderr)}")
        with numpy.load(answers, allow_pickle=False) as found:
            logits = [found[f"logits_{number}"] for number in range(len(token_rows))]
            flat, lengths = found["ids"].tolist(), found["lengths"].tolist()
    ids, begin = [], 0
    for length in lengths:
        ids.append(flat[begin : begin + length])
        begin += length
    return logits, ids


def _error_lines(said: str) -> str:
    """The error lines among the hundreds that llama.cpp prints, else the last lines."""
    lines = said.strip().splitlines()
    errors = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    return "\n".join((errors or lines)[-ERROR_LINES:])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _answer(file: str, questions: str, answers: str) -> None:
    """The program. fp32 KV cache and no flash attention, so that only the weights are rounded."""
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
        verbose=True,  # else it does not report errors of a file
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
