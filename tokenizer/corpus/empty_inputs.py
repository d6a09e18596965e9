"""Inputs without a usable document: an error that says why, since whoever named them expected text in them."""

from pretrain.errors import DataError
from tokenizer.corpus.readers.open_file import escape_url
from tokenizer.corpus.readers.rejections import EMPTY, FILTERED
from tokenizer.corpus.rejection_log import RejectionLog

# Among many files that a pattern of the shell names, some are empty, or have no record that meets the conditions.
_EXPECTED_OF_A_FILE = {EMPTY, FILTERED}


def refuse_empty_input(address: str, problems: RejectionLog, *, single_file: bool) -> None:
    """Raise DataError for an input that gave no document; `problems` are its own."""
    if single_file and not set(problems.counts) - _EXPECTED_OF_A_FILE:
        return
    raise DataError(
        f"{escape_url(address)}: no document of it can be used{problems.summary()}",
        hint=problems.hint() or "leave this input out",
    )
