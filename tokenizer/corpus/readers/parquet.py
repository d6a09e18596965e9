"""Parquet: one document per row, its text in a column; reads small batches of the needed columns only.

A corrupt page rejects the rest of its row group, a corrupt footer the file. Needs pyarrow (extra `parquet`), which checks
the CRC-32 of each page that has one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.fields import missing_field, parse_condition, parse_record
from tokenizer.corpus.readers.open_file import escape_url, open_file
from tokenizer.corpus.readers.parts import Document, FilePart, ReadOptions
from tokenizer.corpus.readers.rejections import BROKEN_PARQUET, Rejection, too_large
from tokenizer.corpus.readers.tar_members import UnusableError, escape_name

BATCH_BYTES = 8 << 20
BATCH_ROWS = 1024
# With dictionary encoding, footer sizes count a repeated value once; writers limit a dictionary to about 1 MB.
BATCH_ROWS_OF_DICTIONARY = 64
READ_BUFFER_BYTES = 4 << 20


class RowGroup(NamedTuple):
    """A row group by its footer: uncompressed `text_bytes`, None without the text field; `batch_rows` fit BATCH_BYTES."""

    rows: int
    text_bytes: int | None
    batch_rows: int


class OpenParquet(NamedTuple):
    """An open parquet file: `reader` is a `pyarrow.parquet.ParquetFile`."""

    reader: Any
    columns: list[str]
    groups: list[RowGroup]


def read_parquet(part: FilePart, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of the part's row groups. A place is `file: row N`, counted from 0 in the file."""
    name = escape_url(part.url)
    with open_file(part) as file:
        table = open_parquet(file, options)
        row = sum(group.rows for group in table.groups[: part.start])
        for number in range(part.start, part.stop):
            group = table.groups[number]
            if group.text_bytes is None:
                places = (f"{name}: row {row + n}" for n in range(group.rows))
                yield from (missing_field(table.columns, place, options.text_field) for place in places)
            else:
                yield from _rows(table, number, name, row, options)
            row += group.rows


def open_parquet(file: BinaryIO, options: ReadOptions) -> OpenParquet:
    """Read the footer. Raises UnusableError if it is corrupt, DataError if pyarrow is not installed."""
    parquet = import_parquet()
    try:
        # pre_buffer would load complete row groups, which may not fit into memory.
        reader = parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True
        )
        groups = [_measure_group(reader.metadata.row_group(n), options) for n in range(reader.metadata.num_row_groups)]
        return OpenParquet(reader, reader.schema_arrow.names, groups)
    except _errors() as error:
        raise UnusableError(BROKEN_PARQUET, escape_name(str(error))) from None


def import_parquet() -> Any:
    """Import `pyarrow.parquet`. Raises DataError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"parquet files need a package that is not installed: {error}",
            hint="pip install 'pretrain-toolkit[parquet]'",
        ) from None
    return pyarrow.parquet


def _measure_group(metadata: Any, options: ReadOptions) -> RowGroup:
    chunks = [metadata.column(n) for n in range(metadata.num_columns)]
    needed = [chunk for chunk in chunks if any(_is_column_of(chunk, field) for field in _fields(options))]
    size = sum(chunk.total_uncompressed_size for chunk in needed)
    most = BATCH_ROWS_OF_DICTIONARY if any(chunk.has_dictionary_page for chunk in needed) else BATCH_ROWS
    texts = [chunk.total_uncompressed_size for chunk in chunks if _is_column_of(chunk, options.text_field)]
    batch_rows = max(1, min(most, BATCH_BYTES * metadata.num_rows // max(1, size)))
    return RowGroup(metadata.num_rows, sum(texts) if texts else None, batch_rows)


def _fields(options: ReadOptions) -> list[str]:
    return [options.text_field, *(parse_condition(condition).field for condition in options.where)]


def _is_column_of(chunk: Any, field: str) -> bool:
    return f"{chunk.path_in_schema}.".startswith(f"{field}.")


def _rows(
    table: OpenParquet, number: int, name: str, first: int, options: ReadOptions
) -> Iterator[Document | Rejection]:
    rows, _, batch_rows = table.groups[number]
    batches = table.reader.iter_batches(
        batch_size=batch_rows, row_groups=[number], columns=_fields(options), use_threads=False
    )
    done, problem = 0, ""
    while done < rows and not problem:
        try:
            batch = next(batches)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        except StopIteration:
            problem = "fewer rows than the footer says"
        except _errors() as error:
            problem = escape_name(str(error))
        else:
            for n in range(batch.num_rows):
                yield _parse_row(columns, n, f"{name}: row {first + done + n}", options)
            done += batch.num_rows
    if problem:
        left = f"{rows - done} rows of row group {number} are left out"
        yield Rejection(f"{name}: row {first + done}", BROKEN_PARQUET, f"{problem}; {left}")


def _parse_row(columns: Mapping[str, Any], row: int, place: str, options: ReadOptions) -> Document | Rejection:
    try:
        record = {name: column[row].as_py() for name, column in columns.items()}
    except UnicodeDecodeError as error:
        return Rejection(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
    found = parse_record(record, place, options)
    if isinstance(found, Document) and found.bytes > options.max_document_bytes:
        return too_large(place, options.max_document_bytes)
    return found


def _errors() -> tuple[type[Exception], ...]:
    """Exceptions that pyarrow raises for corrupt files; ValueError for column names that are not UTF-8, among others."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)
