"""Documents of a task, one after the other, in memory that does not grow with the files.

    jsonl      one a line, its text in a field                           jsonl.py      plain: any range of bytes
    text       one a file, or several with a separator between them      text.py       plain: any range of bytes
    parquet    one a row, its text in a column                           parquet.py    row groups
    tar        one a member: .txt, .md, .json, each also .gz             tar.py

jsonl and text may be compressed (compressed.py), and every file may lie in an object store (files.py). What cannot be
used is a `Rejection` in the place where it was found; nothing is repaired. A damaged file ends with a Rejection.
"""

from collections.abc import Callable, Iterator

from tokenizer.corpus.readers.jsonl import read_jsonl
from tokenizer.corpus.readers.open_file import show
from tokenizer.corpus.readers.parquet import read_parquet
from tokenizer.corpus.readers.parts import LEFT_OUT, Document, Part, ReadOptions, Task
from tokenizer.corpus.readers.plain_text import read_text_file
from tokenizer.corpus.readers.rejections import EMPTY, Rejection
from tokenizer.corpus.readers.tar import read_tar
from tokenizer.corpus.readers.tar_members import UnusableError

__all__ = ["Document", "Part", "ReadOptions", "Task", "read_documents", "read_part"]

Reader = Callable[[Part, ReadOptions], Iterator[Document | Rejection]]

_READERS: dict[str, Reader] = {"jsonl": read_jsonl, "text": read_text_file, "parquet": read_parquet, "tar": read_tar}


def read_documents(task: Task, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of all parts in their order, and a Rejection for each that cannot be used.

    Same task, same documents: nothing depends on the process or on other tasks. Raises DataError for a file that is not
    what was planned, a store that fails, and a package that is missing.
    """
    for part in task.parts:
        yield from read_part(part, options)


def read_part(part: Part, options: ReadOptions) -> Iterator[Document | Rejection]:
    """`read_documents` of one part, where counts are kept by file (`part.url`)."""
    if part.format in LEFT_OUT:
        yield Rejection(show(part.url), *LEFT_OUT[part.format])
        return
    if not part.size and part.format in ("jsonl", "text"):  # of other formats, that is damage
        yield Rejection(show(part.url), EMPTY, "no text")
        return
    documents = 0
    try:
        for found in _READERS[part.format.partition(".")[0]](part, options):
            documents += isinstance(found, Document)
            yield found
    except UnusableError as problem:
        yield _damaged(part, problem.reason, problem.detail, documents)
    except OSError as error:
        yield _damaged(part, "unreadable", str(error.strerror), documents)


def _damaged(part: Part, reason: str, detail: str, documents: int) -> Rejection:
    return Rejection(
        show(part.url), reason, f"{detail}; {documents} documents before it were read, the rest is left out"
    )
