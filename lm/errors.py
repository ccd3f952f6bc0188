"""Errors that the user can fix, reported in one line instead of a traceback."""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """An error whose message says in one line what is wrong, where, and how to fix it.

    Messages quote file names, keys and other libraries' messages. Control characters in them are escaped, such as a
    newline to \\n, and what exceeds a screenful is left out, so that every message is one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shorten(_escape(message), 2000))


def quote(value: object, limit: int = 80) -> str:
    r"""Return `repr(value)` in one line of at most `limit` characters, for use in a message.

    >>> quote("a\nb"), quote("a" * 100, limit=20)
    ("'a\\nb'", "'aaaaaa [...] aaaaa'")
    """
    return _shorten(_escape(repr(value)), limit)


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shorten(text: str, limit: int) -> str:
    """Leave out the middle of a text that has more than `limit` characters."""
    mark = " [...] "
    half, odd = divmod(limit - len(mark), 2)
    return text if len(text) <= limit else text[: half + odd] + mark + text[-half:]


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run an entry point and exit without a traceback on expected errors.

    A UserError prints one line to stderr and exits with status 1, and Ctrl-C exits with status 130. A full disk and
    text that stdout's encoding cannot represent are reported like a UserError. If the reader of stdout has closed the
    pipe, as in `... | head`, the exit is silent with status 1. If the process was started without a
    stdout, as with `>&-`, its output is discarded.
    """
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    try:
        main()
        print(end="", flush=True)  # now, so that an error is caught here
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)
    except UnicodeEncodeError as error:
        if sys.stdout.encoding.lower() == "utf-8":
            raise  # the error did not come from stdout
        character, encoding = error.object[error.start], sys.stdout.encoding
        sys.exit(f"error: output: cannot be written as {encoding} ({character!a}); set PYTHONIOENCODING=utf-8")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard_stdout()
        sys.exit(f"error: {error.filename or 'output'}: cannot be written ({error.strerror}); free some space")


def _discard_stdout() -> None:
    """Redirect stdout to nowhere, because the interpreter's flush of it on exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
