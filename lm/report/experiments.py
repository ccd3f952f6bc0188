"""The files of DVC experiments, from git and from DVC's cache."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from lm.errors import UserError, quote

WORKSPACE = "workspace"

# What a comparison shows, and what it can do without.
_NEEDED = ("params.yaml", "metrics/train.json", "metrics/train.csv")
_OPTIONAL = ("metrics/evaluation.json", "data/samples/samples.json")


def fetch(name: str, folder: Path) -> None:
    """Copy the files of an experiment into a folder.

    Args:
        name: An experiment, a branch, a tag or a commit; `workspace` is the present folder.
        folder: The folder to write to.

    Raises:
        UserError: there is no such experiment, or this folder is not a DVC project with git.
    """
    for path in (*_NEEDED, *_OPTIONAL):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    if name == WORKSPACE:
        for path in filter(os.path.isfile, (*_NEEDED, *_OPTIONAL)):
            shutil.copyfile(path, folder / path)
    else:
        _fetch_revision(name, folder)
    if missing := [path for path in _NEEDED if not (folder / path).is_file()]:
        raise UserError(f"{quote(name)}: has no {missing[0]}; run it with: dvc exp run -n NAME")


def _fetch_revision(name: str, folder: Path) -> None:
    # DVC takes half a second to import, which only a comparison needs.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, SCMError, resolve_rev

    try:
        with Repo() as repo:
            files = DVCFileSystem(rev=resolve_rev(repo.scm, name))
        for path in filter(files.isfile, (*_NEEDED, *_OPTIONAL)):
            with suppress(OSError, DvcException):  # a sample that is not in the cache of this machine
                files.get_file(path, str(folder / path))
    except (RevError, SCMError) as error:
        raise UserError(
            f"{quote(name)}: there is no such experiment, branch or commit; list them with: dvc exp show"
        ) from error
    except DvcException as error:
        raise UserError(f"{quote(name)}: cannot be read ({error}); run it in the folder of the project") from error
