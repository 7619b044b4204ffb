"""The folder one experiment lives in: where its artifacts are, and what it was made with."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcr_jax import disk
from mcr_jax.errors import McrError
from mcr_jax.paths import expanded, local_folder

if TYPE_CHECKING:
    from etils import epath

_RECORDED_PACKAGES = (
    *("mcr-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"),
    *("sentencepiece", "google-genai", "ml_collections", "numpy", "scipy"),
)


class Workdir:
    """Names the artifacts of one experiment and writes the small ones whole or not at all.

    Attributes:
      path: of the folder.
      writes: False for all but one of several processes that work in it together, or each in one of
        its host: these read what is there, and what they would write is left out.
    """

    def __init__(self, path: str | Path, writes: bool = True):
        """Opens `path`, creating it. Raises McrError where that cannot be."""
        self.path, self.writes = local_folder(path), writes
        self._held, self._sections = False, None  # manifest.json, read once while it is `locked`
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.listdir(self.path)
        except OSError as error:
            raise McrError(f"{self.path}: cannot use this workdir: {error.strerror}") from error
        self.cases = self.path / "cases"  # the fictional clinic's source files
        self.data = self.path / "data"  # TFDS data_dir, where config.data.data_dir is "workdir"
        self.tokenizer = self.path / "tokenizer"
        self.tokens = self.path / "tokens"  # tokenized cases and packed rows, made anew if missing
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"  # one line per logged training step
        self.tensorboard = self.path / "tb"  # the same for TensorBoard, and traces of steps
        self.traces = self.path / "traces.parquet"  # one per case that training reads
        self.stitching = self.path / "stitch.json"  # what the audit of the traces found
        self.ledger = self.path / "ledger.sqlite"
        self.scores = self.path / "scores.json"  # per case, what results.json averages
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"

    def write_text(self, path: Path, text: str) -> None:
        """Writes `path` atomically: readers see the old file or the whole new one."""
        if self.writes:
            write_text(path, text)

    def write_json(self, path: Path, value: Any) -> None:
        """Writes `value` as indented JSON with sorted keys, atomically."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        self.write_text(path, text + "\n")

    def read_json(self, path: Path) -> Any:
        """Reads a JSON artifact. Raises McrError if it is missing or broken."""
        return read_json(path)

    def sections(self) -> dict[str, Any]:
        """Returns the sections of manifest.json; {} without one. Raises McrError if it is broken.

        While the workdir is `locked` the file is read once: no other process writes it then.
        """
        if self._sections is None or not self._held:
            self._sections = read_json(self.manifest) if self.manifest.exists() else {}
        return self._sections

    def note(self, section: str, facts: Mapping[str, Any]) -> None:
        """Records `facts` under `section` of manifest.json, with versions and git state.

        The file is written only if that changes it.
        """
        if not self.writes:
            return
        before = self.sections()
        after = {**before, "environment": environment(), section: dict(facts)}
        if after != before:
            self.write_json(self.manifest, after)
            self._sections = after

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the workdir against a second `mcr` that would write it at the same time.

        Processes that leave the writing to another leave that to it, too.

        Raises McrError if it is held already or cannot be written.
        """
        if not self.writes:
            yield
            return
        try:
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise McrError(f"{self.path}: cannot use this workdir: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise McrError(f"{self.path}: another mcr is at work in this workdir") from error
            self._held, self._sections = True, None
            try:
                yield
            finally:
                self._held = False


def storage_path(path: str | Path) -> "epath.Path":
    """A local folder, made absolute, or an address such as gs://BUCKET/RUN as it is.

    Raises UsageError where the path begins with ~ and the name of no user.
    """
    from etils import epath

    return epath.Path(path) if "://" in str(path) else epath.Path(expanded(path)).absolute()


def write_text(path: Path, text: str) -> None:
    """Writes `path` atomically and durably. Raises McrError, the old file intact."""
    with disk.atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Reads the object in a JSON file. Raises McrError if it is missing or broken."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escape of half a character, which no file could hold
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise McrError(f"{path}: not there; run the stage that makes it first") from None
    except UnicodeEncodeError as error:
        raise McrError(f"{path}: unreadable: it holds a lone surrogate") from error
    except (OSError, ValueError) as error:
        raise McrError(f"{path}: unreadable: {error}") from error
    except RecursionError as error:
        raise McrError(f"{path}: unreadable: nested too deeply") from error
    if not isinstance(value, dict):
        raise McrError(f"{path}: unreadable: not a JSON object")
    return value


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of plain data."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@functools.cache
def environment() -> dict[str, Any]:
    """Versions of what ran and the state of the git checkout it ran from, if any."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"python": platform.python_version(), "packages": versions, "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    call = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch.oid "))
    return {
        "commit": heads.get("branch.oid"),
        "dirty": any(not line.startswith("#") for line in lines),
    }
