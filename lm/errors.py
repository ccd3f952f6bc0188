"""Errors that the user can fix, reported in one line instead of a traceback."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO


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

    A UserError prints one line to stderr and exits with status 1, and Ctrl-C exits with status 130. A full disk and a
    lack of memory are reported like a UserError. If the reader of stdout or stderr has closed the pipe, as in
    `... | head`, the exit is silent with status 1. If the process was started without stdout or stderr, as with `>&-`,
    their output is discarded. Characters that the encoding of stdout cannot represent are written as `?`.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as stages/__init__.py leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _complete_standard_streams()
    try:
        _run_and_flush(main)
    except UserError as error:
        _exit(1, f"error: {error}")
    except MemoryError as error:
        _exit(1, f"error: not enough memory ({_escape(str(error)) or 'an allocation failed'})")
    except KeyboardInterrupt:
        _exit(130, "\ninterrupted")
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _exit(1, f"error: {error.filename or 'output'}: cannot be written ({error.strerror}); free some space")
        # Stdout is open for reading only, or its terminal is gone.
        if error.errno in (errno.EBADF, errno.EIO) and not error.filename:
            _exit(1, f"error: output: cannot be written ({error.strerror})")
        raise


def _run_and_flush(main: Callable[[], None]) -> None:
    # Flush now, so that an error is caught, and not when the interpreter is exiting.
    try:
        main()
        print(end="", flush=True)
    except SystemExit as error:  # from argparse
        if not error.code:
            print(end="", flush=True)
        raise


def _complete_standard_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _exit(status: int, message: str) -> NoReturn:
    """Print a message to stderr and exit; a stream that cannot be written to is ignored."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:
            _discard(stream)
    sys.exit(status)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to nowhere, because the interpreter's flush of it on exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
