"""One-line error messages."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or the name of its type if it has no message.

    >>> one_line(ValueError("two lines\\n  of text")), one_line(MemoryError())
    ('two lines of text', 'MemoryError')
    """
    return " ".join(str(error).split()) or type(error).__name__
