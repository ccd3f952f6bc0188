"""Errors that the user can fix, reported in one line instead of a traceback."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """An error whose message says in one line what is wrong, where, and how to fix it."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run an entry point and exit without a traceback on expected errors.

    A UserError prints one line to stderr and exits with status 1, and Ctrl-C exits with status 130. If the reader of
    stdout has closed the pipe, as in `... | head`, the exit is silent with status 1.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The interpreter flushes stdout on exit, which would fail again on the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
