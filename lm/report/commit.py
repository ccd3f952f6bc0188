"""The git commit of a folder, and what has changed since."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 10


@dataclass(frozen=True)
class Commit:
    """A commit and the files and folders at the top of the project that contain changes to it, in order."""

    hash: str
    changed: list[str]

    def __str__(self) -> str:
        """Such as `511b0fb9`, or `511b0fb9 with changes`."""
        return self.hash[:8] + (" with changes" if self.changed else "")


def read_commit(folder: Path) -> Commit | None:
    """The present commit of a folder, or None if there is none: no repository, no commit, or no git.

    Files that git does not track are no changes.
    """
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "diff", "--name-only", "--relative", "-z", "HEAD")
    if head is None or changed is None:
        return None
    names = {path.split("/", 1)[0] for path in changed.split("\0") if path}
    return Commit(head.strip(), sorted(names))


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git, or None if it fails. It takes no locks, so that it never disturbs another git."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
