"""Errors that are the user's to mend: one clear line instead of a traceback."""

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
