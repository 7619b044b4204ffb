"""Rebuilds the wheel from which mcr-jax was installed, to install it on a TPU without a checkout.

python -P -m mcr_jax.launch.wheel FOLDER
"""

import base64
import hashlib
import sys
import zipfile
from importlib import metadata
from pathlib import Path

_INSTALLER_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")


def make(folder: str | Path) -> Path:
    """Writes the wheel into `folder`; returns its path.

    Raises:
      SystemExit: mcr-jax was not installed from a wheel.
    """
    installed = metadata.distribution("mcr-jax")
    (tag, *_) = (installed.read_text("WHEEL") or "").partition("Tag: ")[2].split() or [""]
    files = [file for file in installed.files or () if _is_content(file)]
    if not tag or not any(file.parts[0] == "mcr_jax" for file in files):
        raise SystemExit(
            "mcr-jax was not installed from a wheel: name --repo=git+https://HOST/REPO"
        )
    wheel = Path(folder) / f"mcr_jax-{installed.version}-{tag}.whl"
    record = next(file for file in files if file.name == "WHEEL").with_name("RECORD").as_posix()
    lines = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            content = Path(str(installed.locate_file(file))).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            lines.append(f"{file.as_posix()},sha256={digest.decode()},{len(content)}")
            archive.write(str(installed.locate_file(file)), file.as_posix())
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return wheel


def _is_content(file: metadata.PackagePath) -> bool:
    """Returns True for a file of the wheel; the installer makes scripts and bytecode."""
    made_here = ".." in file.parts or "__pycache__" in file.parts or file.is_absolute()
    return not made_here and file.name not in _INSTALLER_FILES


if __name__ == "__main__":
    make(sys.argv[1])
