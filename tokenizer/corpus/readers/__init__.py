"""Streams the documents of a task; memory use does not depend on file size.

    jsonl      a document per line, its text in a field                  jsonl.py         byte ranges unless compressed
    text       a document per file, or several with a separator          plain_text.py    byte ranges unless compressed
    parquet    a document per row, its text in a column                  parquet.py       row groups
    tar        a document per member: .txt, .md, .json, also .gz         tar.py           complete files

jsonl and text may be compressed (compressed.py); any file may be in an object store (open_file.py). An unusable document
is yielded as a `Rejection` at its position; nothing is repaired. A corrupt file ends with a Rejection.
"""

from collections.abc import Callable, Iterator

from tokenizer.corpus.readers.jsonl import read_jsonl
from tokenizer.corpus.readers.open_file import escape_url
from tokenizer.corpus.readers.parquet import read_parquet
from tokenizer.corpus.readers.parts import LEFT_OUT, CorpusTask, Document, FilePart, ReadOptions
from tokenizer.corpus.readers.plain_text import read_text_file
from tokenizer.corpus.readers.rejections import DAMAGED_REASONS, EMPTY, UNREADABLE, Rejection
from tokenizer.corpus.readers.tar import read_tar
from tokenizer.corpus.readers.tar_members import UnusableError

__all__ = ["CorpusTask", "Document", "FilePart", "ReadOptions", "read_documents", "read_part"]

PartReader = Callable[[FilePart, ReadOptions], Iterator[Document | Rejection]]

_READERS: dict[str, PartReader] = {
    "jsonl": read_jsonl,
    "text": read_text_file,
    "parquet": read_parquet,
    "tar": read_tar,
}


def read_documents(task: CorpusTask, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of all parts in order, with a Rejection for each unusable one.

    Depends on the task and options alone. Raises DataError if a file changed since it was planned, an object store fails
    or a package is missing.
    """
    for part in task.parts:
        yield from read_part(part, options)


def read_part(part: FilePart, options: ReadOptions) -> Iterator[Document | Rejection]:
    """`read_documents` for one part, for callers that count by file (`part.url`)."""
    if part.format in LEFT_OUT:
        yield Rejection(escape_url(part.url), *LEFT_OUT[part.format])
        return
    if not part.size and part.format in ("jsonl", "text"):  # an empty file of any other format is corrupt
        yield Rejection(escape_url(part.url), EMPTY, "no text")
        return
    documents = 0
    try:
        for found in _READERS[part.format.partition(".")[0]](part, options):
            documents += isinstance(found, Document)
            if isinstance(found, Rejection) and found.reason in DAMAGED_REASONS:
                found = _add_count(found, part, documents)
            yield found
    except UnusableError as problem:
        yield _add_count(Rejection(escape_url(part.url), problem.reason, problem.detail), part, documents)
    except OSError as error:
        yield _add_count(Rejection(escape_url(part.url), UNREADABLE, str(error.strerror)), part, documents)


def _add_count(damage: Rejection, part: FilePart, documents: int) -> Rejection:
    where = " in this part of the file" if part.start else ""
    return damage._replace(detail=f"{damage.detail}; {documents} documents before it{where} were read")
