"""Rows of results as Markdown tables."""

Row = dict[str, str]


def markdown(rows: list[Row]) -> str:
    """One table with the keys of the first row as its head."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row.get(key, "") for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
