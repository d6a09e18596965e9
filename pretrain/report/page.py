"""A page that is one file: its style, its script and its data stand in it, and it may fetch nothing.

The content security policy admits this one style and this one script by their hashes, so that nothing that a text or a
configuration smuggles in could run, even if it were not escaped.
"""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from pretrain.errors import UserError


def document(title: str, body: str, *, style: str, script: str = "", data: Any = None) -> str:
    """A whole HTML page. `body` is HTML; `data` is put into the element #data as JSON, where `script` finds it."""
    policy = f"default-src 'none'; style-src {_hash(style)}" + (f"; script-src {_hash(script)}" if script else "")
    payload = f'<script type="application/json" id="data">{_json(data)}</script>' if data is not None else ""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{body}{payload}{code}</body></html>\n"
    )


def origin(name: str, step: int) -> str:
    """Which weights these are; a directory's have no step."""
    return f"{name} · step {step}" if step else name


def resource(package: str, name: str) -> str:
    """Text of a file that lies in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def write_page(page: str, path: Path) -> None:
    """The folder is made where it is missing. Raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON in which nothing can end the element that it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
