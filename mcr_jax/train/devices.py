"""The accelerators that a run can be planned for: memory, arithmetic, fast attention."""

import dataclasses
import os
import re

from mcr_jax.errors import UsageError
from mcr_jax.train import flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """What a run is planned for.

    Attributes:
      kind: as the maker spells it.
      count: devices as jax counts them; a TPU chip is one.
      bytes: memory of one device.
      flops: dense bfloat16 operations per second of one device; None where it has no bfloat16, or
        nobody promises any.
      fused_head_dim: the largest head that an attention kernel takes there, as `model.attention`
        knows it; 0 where there is none.
      fused_float32: whether it takes float32, too.
    """

    kind: str
    count: int
    bytes: int
    flops: float | None
    fused_head_dim: int
    fused_float32: bool

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"


_ANY = 1 << 30
_MOST = 1_000_000  # devices; no job has more, and beyond it is a slip of the finger

# Gigabytes of memory, the name in flops.PEAKS and the largest head of the attention kernel. Memory
# is what cloud.google.com/tpu/docs/system-architecture-tpu-vm and NVIDIA's data sheets promise,
# taken as 10^9 bytes; some devices have the 2^30 that others call a gigabyte, none has less.
_KINDS = {
    "v4": (32, "TPU v4", _ANY),
    "v5e": (16, "TPU v5e", _ANY),
    "v5p": (95, "TPU v5p", _ANY),
    "v6e": (32, "TPU v6e", _ANY),
    "T4": (16, "", 0),
    "L4": (24, "NVIDIA L4", 128),
    "L40S": (48, "NVIDIA L40S", 128),
    "A100-40GB": (40, "NVIDIA A100", 128),
    "A100-80GB": (80, "NVIDIA A100", 128),
    "H100": (80, "NVIDIA H100", 256),
    "H200": (141, "NVIDIA H200", 256),
    "B200": (192, "NVIDIA B200", 256),
}
CPU = "cpu"  # this machine's, its memory shared out among them
KNOWN = (*_KINDS, CPU)
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6lite": "v6e"}
_CORES = ("v4", "v5p")  # whose types count TensorCores, of which a chip has two


def devices(text: str) -> Devices:
    """Reads "8 x v5e", "1 x H200", "8xH100" or "4 x A100-80GB", and types of a TPU slice.

    A type is such as "v5litepod-64", 64 x v5e, or "v4-8", 4 x v4.

    Raises:
      UsageError: it is not of that form, or the kind is unknown, or there are too many.
    """
    parts = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\S.*?)\s*", text, re.IGNORECASE)
    slice_type = re.fullmatch(r"\s*(v\d\w*)-(\d+)\s*", text, re.IGNORECASE)
    if not parts and not slice_type:
        raise UsageError(
            f"--plan={text!r} is not COUNT x KIND, such as '8 x v5e' or '1 x H200'; "
            f"kinds are {', '.join(KNOWN)}"
        )
    named, number = (parts[2], parts[1]) if parts else (slice_type[1], slice_type[2])
    kind = _known().get(_plain(named))
    if kind is None:
        some = [name for name in KNOWN if _plain(name).startswith(_plain(named))] or KNOWN
        raise UsageError(f"--plan={text!r}: {named!r} is none of {', '.join(some)}")
    count = int(number[:9])
    if slice_type and kind in _CORES:
        count //= 2
    if not 1 <= count <= _MOST:
        raise UsageError(f"--plan={text!r} is not COUNT x KIND with a COUNT of 1 to {_MOST:,}")
    if kind == CPU:
        memory, peak, head = _machine() // count, None, 0
    else:
        gigabytes, name, head = _KINDS[kind]
        memory, peak = gigabytes * 10**9, flops.peak(name)
    return Devices(
        kind=kind,
        count=count,
        bytes=memory,
        flops=peak,
        fused_head_dim=head,
        fused_float32=head == _ANY,
    )


def _known() -> dict[str, str]:
    """Kinds by what people call them; "H100-80GB" is the H100, for it has 80."""
    with_memory = {f"{name}{size[0]}": name for name, size in _KINDS.items()}
    names = {name: name for name in KNOWN} | with_memory | _ALIASES
    return {_plain(called): name for called, name in names.items()}


def _plain(kind: str) -> str:
    return re.sub(r"[\s_-]|gb$|^(nvidia|tpu)", "", kind.lower().strip())


def _machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
