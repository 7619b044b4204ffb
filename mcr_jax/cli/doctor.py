"""Checks Python, packages, devices, keys (never their values) and disk space."""

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Sequence
from importlib import metadata

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import one_line

_MARKS = {True: "ok", False: "MISSING", None: "-"}
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "OPENAI_API_KEY")
KEYS += ("OPENAI_BASE_URL", "TFDS_DATA_DIR")


def main(argv: Sequence[str]) -> int:
    """Runs `mcr doctor`; exit status 1 if something required is missing."""
    flags = Flags("doctor", __doc__)
    if not flags.parse(argv):
        return 0
    missing = 0
    for ok, name, finding in findings():
        missing += ok is False
        console.say(f"{_MARKS[ok]:<8} {name:<24} {finding}")
    return 1 if missing else 0


def findings() -> list[tuple[bool | None, str, str]]:
    """Returns (ok, name, finding) of each check; ok is None for an absent optional item."""
    found: list[tuple[bool | None, str, str]] = [(True, "python", platform.python_version())]
    required = [r for r in metadata.requires("mcr-jax") or () if "extra ==" not in r]
    for name in (re.match(r"[\w.-]+", requirement)[0] for requirement in required):
        try:
            found.append((True, name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((False, name, f"pip install {name}"))
    found.append(_devices())
    if importlib.util.find_spec("tensorflow"):
        found.append((True, "tensorflow", "present: tfds.load works"))
    else:
        found.append((None, "tensorflow", "only tfds.load needs it: pip install 'mcr-jax[tf]'"))
    for key in KEYS:
        is_set = bool(os.environ.get(key))
        found.append((is_set or None, key, "set" if is_set else "not set"))
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    found.append((free > 1, "disk here", f"{free:.1f} GB free"))
    return found


def _devices() -> tuple[bool, str, str]:
    if not importlib.util.find_spec("jax"):
        return False, "devices", "jax is missing"
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return False, "devices", one_line(str(error), 300)
    return True, "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
