"""Short forms of numbers, for terminals and charts."""


def format_count(value: float) -> str:
    """1234 → 1.2k, 5600000 → 5.6M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # Rounding up counts, or 999,950 would print as 1000.0k.
        if value >= size * (1 - (0.0005 if unit == "k" else 0.00005)):
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """75 → 1:15, 7384 → 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_age(seconds: float) -> str:
    """75 → 1 min, 7384 → 2 h."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def format_megabytes(count: float, digits: int = 1) -> str:
    """Bytes: 1234567890 → 1,234.6 MB."""
    return f"{count / 1e6:,.{digits}f} MB"


def short_number(value: float) -> str:
    """Four digits, for axes: 1500 → 1.5k, 2000000 → 2M, 0.00012 → 1.2e-4."""
    if value and abs(value) < 1e-3:
        digits, power = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
