"""Downloads the published cases from the Hugging Face Hub into its cache, with checksums.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are huggingface_hub's. An interrupted download
resumes.
"""

import hashlib
import io
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mcr_jax import http_modules
from mcr_jax.errors import McrError, UsageError, one_line

REPOSITORY = "zou-lab/MedCaseReasoning"
_ADDRESS = f"https://huggingface.co/datasets/{REPOSITORY}"
_FILES = ("data/*.parquet", "README.md")
_LOCAL = "or give --source=PATH to a copy that you have"


class Snapshot(NamedTuple):
    """A revision of the repository on this machine.

    Attributes:
      folder: holds data/*.parquet and the card, README.md.
      commit: hash of the revision, 40 hex digits.
    """

    folder: pathlib.Path
    commit: str

    @property
    def origin(self) -> str:
        """Returns repository and revision as an address."""
        return f"hf://datasets/{REPOSITORY}@{self.commit}"


def download(revision: str, progress: Callable[[int, int], None] | None = None) -> Snapshot:
    """Downloads the cases unless they are cached, and checks every file's checksum.

    Args:
      revision: a commit hash, a branch or a tag.
      progress: called with (bytes so far, bytes in total).

    Raises:
      UsageError: there is no such revision.
      McrError: the Hub cannot be reached or refuses, the disk is full, or a file is damaged.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            REPOSITORY,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(_FILES),
            tqdm_class=_bar(progress or (lambda done, total: None)),
        )
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"--revision={revision}: {_ADDRESS} has no such revision") from error
    except errors.GatedRepoError as error:
        raise McrError(
            f"{_ADDRESS} wants you to accept its terms: do it there, set HF_TOKEN, {_LOCAL}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise McrError(
            f"{_ADDRESS} is not there, or not for you: check HF_ENDPOINT and HF_TOKEN, {_LOCAL}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise McrError(f"{_unreachable(error)}, {_LOCAL}") from error
    except (errors.HfHubHTTPError, *http_modules.errors()) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise McrError(
                f"{_ADDRESS} refused (HTTP {status}): check HF_TOKEN, {_LOCAL}"
            ) from error
        raise McrError(
            f"the download from the Hub failed ({_line(error)}): run it again, it goes on, {_LOCAL}"
        ) from error
    except OSError as error:
        raise McrError(
            f"the download from the Hub could not be kept: {_line(error)}; HF_HOME names another "
            "folder for it"
        ) from error
    made = Snapshot(pathlib.Path(folder), pathlib.Path(folder).name)
    _check(made)
    return made


def _unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the cache does not hold the cases: unset it"
    cause = error.__cause__ or error
    return f"the Hub cannot be reached ({_line(cause)}): check the network and HF_ENDPOINT"


def _check(snapshot: Snapshot) -> None:
    """Raises McrError for a file that differs from its checksum, and deletes it.

    A cached file is a link to a blob named by its SHA-256, or Git's SHA-1 for a small one.
    """
    for link in sorted(snapshot.folder.rglob("*")):
        blob = link.resolve()
        if blob.is_dir() or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        hasher = hashlib.sha256()
        if len(blob.name) == 40:
            hasher = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        with open(blob, "rb") as content:
            while part := content.read(1 << 20):
                hasher.update(part)
        if hasher.hexdigest() != blob.name:
            blob.unlink()
            link.unlink(missing_ok=True)
            raise McrError(
                f"{link} was damaged (its checksum is not the Hub's) and is deleted: run it again"
            )


def _bar(progress: Callable[[int, int], None]) -> type:
    """Returns a progress bar for huggingface_hub that calls `progress` and draws nothing."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            # There is one bar of the bytes on disk, one of the network's bytes, one of files.
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self._counts:
                progress(int(self.n), int(self.total or 0))
            return shown

    return Bar


def _line(error: BaseException) -> str:
    return one_line(str(error), 200) or type(error).__name__
