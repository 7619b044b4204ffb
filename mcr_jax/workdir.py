"""Folder of one experiment: paths of its artifacts, atomic writes, and the manifest."""

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
    """Paths of the artifacts of one experiment, with atomic writes of the small ones.

    Attributes:
      path: of the folder.
      writes: False in all but the primary of several processes; then every write is skipped.
    """

    def __init__(self, path: str | Path, writes: bool = True):
        """Opens `path`, creating it. Raises McrError where that cannot be."""
        self.path, self.writes = local_folder(path), writes
        self._sections = None  # manifest.json, read once while it is `locked`
        self.kept: dict[str, Any] | None = None  # while `locked`: objects that its end closes
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.listdir(self.path)
        except OSError as error:
            raise McrError(f"{self.path}: cannot use this workdir: {error.strerror}") from error
        self.cases = self.path / "cases"  # source files of the fictional clinic
        self.data = self.path / "data"  # TFDS data_dir if config.data.data_dir is "workdir"
        self.tokenizer = self.path / "tokenizer"
        self.tokens = self.path / "tokens"  # cache of tokenized cases and packed rows
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"  # one line per logged training step
        self.tensorboard = self.path / "tb"  # the same for TensorBoard, and traces of steps
        self.traces = self.path / "traces.parquet"  # one per case that training reads
        self.stitching = self.path / "stitch.json"  # audit of the traces
        self.ledger = self.path / "ledger.sqlite"
        self.scores = self.path / "scores.json"  # per-case values behind results.json
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"

    def write_text(self, path: Path, text: str) -> None:
        """Writes `path` atomically: readers see the old file or the new one."""
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

        While the workdir is `locked` the file is read once.
        """
        if self._sections is None or self.kept is None:
            self._sections = read_json(self.manifest) if self.manifest.exists() else {}
        return self._sections

    def note(self, section: str, facts: Mapping[str, Any]) -> None:
        """Records `facts` under `section` of manifest.json, with versions and git state.

        Writes the file only if its content changes.
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
        """Locks the workdir against other writing processes; does nothing unless `writes`.

        Raises McrError if another process holds the lock or the folder is not writable.
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
            self.kept, self._sections = {}, None
            try:
                yield
            finally:
                for kept in self.kept.values():
                    kept.close()
                self.kept = None


def storage_path(path: str | Path) -> "epath.Path":
    """Returns an absolute local path, or an address such as gs://BUCKET/RUN unchanged.

    Raises UsageError if the path begins with ~ and an unknown user.
    """
    from etils import epath

    return epath.Path(path) if "://" in str(path) else epath.Path(expanded(path)).absolute()


def write_text(path: Path, text: str) -> None:
    """Writes `path` atomically and durably. Raises McrError, the old file intact."""
    with disk.atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Reads a JSON object. Raises McrError if the file is missing or broken."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # maybe a lone surrogate, which cannot be encoded
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
    """Returns the SHA-256 (hex) of the canonical JSON of plain data."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@functools.cache
def environment() -> dict[str, Any]:
    """Returns package versions and the state of the git checkout, if there is one."""
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
