"""Expands ~ in paths and refuses addresses such as gs://BUCKET where a local folder is needed."""

import os
import re
from pathlib import Path

from mcr_jax.errors import UsageError


def expanded(path: str | os.PathLike) -> Path:
    """Replaces ~ or ~USER by a home folder; a shell does not expand --flag=~/x.

    Raises:
      UsageError: the user is unknown or has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        raise UsageError(f"{path}: there is no home folder of {name}; write it out") from error


def local_folder(path: str | os.PathLike) -> Path:
    """Expands a local path; refuses an address such as gs://BUCKET.

    Raises:
      UsageError: the path is an address, also if Path or normpath has removed one of its slashes,
        or `expanded` fails.
    """
    if address := re.fullmatch(r"(\w{2,}):/+(.*)", str(path), re.DOTALL):
        raise UsageError(
            f"{address[1]}://{address[2]} is not a local folder: copy it to one; only "
            "config.train.checkpoints may be an address"
        )
    return expanded(path)
