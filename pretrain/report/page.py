"""The HTML kit of all reports: one self-contained file per page, with inline style, script and data.

The content security policy allows exactly this style and this script, by hash, and no network: injected markup cannot run
even if it is not escaped.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from pretrain.errors import UserError


def document(title: str, body: str, *, style: str = "", script: str = "", data: Any = None) -> str:
    """A complete HTML page in page.css and `style`. `body` is HTML; `data` is JSON in the element #data, for `script`."""
    style = resource("pretrain.report", "page.css") + style
    policy = f"default-src 'none'; style-src {_hash(style)}" + (f"; script-src {_hash(script)}" if script else "")
    payload = f'<script type="application/json" id="data">{_json(data)}</script>' if data is not None else ""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{body}{payload}{code}</body></html>\n"
    )


def figure(title: str, chart: str, caption: str = "") -> str:
    """A card with a chart (HTML), its title and its caption (text)."""
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}{note}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> str:
    """A table of text cells; `total` is set in bold below the rows."""
    columns = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    last = "" if total is None else f'<tr class="total">{_cells(total)}</tr>'
    return f"<table><tr>{columns}</tr>{body}{last}</table>"


def origin(name: str, step: int) -> str:
    """Name and step of the weights; those of a directory have no step."""
    return f"{name} · step {step}" if step else name


def resource(package: str, name: str) -> str:
    """Text of a file inside a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def write_page(page: str, path: Path) -> None:
    """Write a page and create its folder. Raises UserError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    # "<" is escaped, or a string that holds "</script>" would end the element.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
