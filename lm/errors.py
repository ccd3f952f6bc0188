"""Errors that are the user's to mend: one clear line instead of a traceback."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run an entry point: a UserError becomes one line on stderr and exit status 1, Ctrl-C status 130."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone, as in `... | head`; the interpreter would complain when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
