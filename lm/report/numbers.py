"""Numbers as people read them."""

from matplotlib.ticker import EngFormatter


def count(number: float) -> str:
    """A whole number with commas.

    >>> count(21829.0)
    '21,829'
    """
    return f"{number:,.0f}"


def short(number: float, unit: str = "") -> str:
    """A number in three digits with an SI prefix.

    >>> short(920192), short(6.144e6, "tokens")
    ('920k', '6.14M tokens')
    """
    text = EngFormatter(sep="").format_data(float(f"{number:.3g}"))
    return f"{text} {unit}" if unit else text


def size(number_of_bytes: float) -> str:
    """Bytes in three digits.

    >>> size(20000434)
    '20 MB'
    """
    return EngFormatter(unit="B").format_data(float(f"{number_of_bytes:.3g}"))
