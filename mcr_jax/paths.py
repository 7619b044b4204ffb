"""Paths as people write them: ~ is expanded, and an address such as gs://… is no local folder."""

import os
import re
from pathlib import Path

from mcr_jax.errors import UsageError


def expanded(path: str | os.PathLike) -> Path:
    """`path` with ~ or ~USER replaced by a home folder; a shell leaves that of --flag=~/x alone.

    Raises:
      UsageError: no user is called so, or has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        raise UsageError(
            f"{path}: there is no home folder of {name}; write the path out"
        ) from error


def local_folder(path: str | os.PathLike) -> Path:
    """Expands a local path; refuses an address such as gs://BUCKET.

    Raises:
      UsageError: it is an address, even after Path or normpath has taken one of its slashes; or as
        `expanded`.
    """
    if address := re.fullmatch(r"(\w{2,}):/+(.*)", str(path), re.DOTALL):
        raise UsageError(
            f"{address[1]}://{address[2]} is not a local folder: copy it to one, or name one; "
            "config.train.checkpoints alone may be an address"
        )
    return expanded(path)
