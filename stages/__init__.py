"""The stages of the pipeline, each a thin script that runs as `python -m stages.NAME`.

Ctrl-C while a stage imports what it needs ends it at once, without the traceback of an import that Python's own handler
would print. `lm.errors.exit_cleanly` restores that handler before the stage begins its work.
"""

import signal
import sys
import time
from collections.abc import Callable

_STARTED = time.perf_counter()

# Python sets argv to this while it looks for the module that `python -m` names. In the background, SIGINT is ignored.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_up_seconds() -> float:
    """The seconds since the process began to import the stage, to be called when all its imports are done."""
    return time.perf_counter() - _STARTED


def run_stage(main: Callable[[], None]) -> None:
    """Run the main function of a stage as `exit_cleanly` does, then print how long the stage took."""
    from lm.errors import exit_cleanly

    start_up = start_up_seconds()

    def run_and_report() -> None:
        main()
        print(f"{time.perf_counter() - _STARTED:.1f} s, of which {start_up:.1f} s were start-up")

    exit_cleanly(run_and_report)
