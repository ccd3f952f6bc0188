"""The stages of the pipeline, each a thin script that runs as `python -m stages.NAME`.

Ctrl-C while a stage imports what it needs ends it at once, without the traceback of an import that Python's own handler
would print. `lm.errors.exit_cleanly` restores that handler before the stage begins its work.
"""

import signal
import sys

# Python sets argv to this while it looks for the module that `python -m` names. In the background, SIGINT is ignored.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
