"""Import of the transformers library, with a hint if it is missing, and without its log output."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretrain.errors import UserError


def import_transformers() -> Any:
    """The module. Raises UserError with the install command."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"export needs the package {error.name}", hint="pip install 'pretrain-toolkit[export]'"
        ) from error
    return transformers


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """The module, with progress bars and log messages below errors off within the context."""
    transformers = import_transformers()
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
