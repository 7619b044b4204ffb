"""Accelerators that a run can be planned for: memory, arithmetic, links, attention kernels."""

import dataclasses
import os
import re
from typing import NamedTuple

from mcr_jax.errors import UsageError
from mcr_jax.model import flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Devices that a run is planned for.

    Attributes:
      kind: as the maker spells it.
      count: devices as jax counts them; a TPU chip is one.
      bytes: memory of one device.
      flops: dense operations per second of one device, in bfloat16 where it has tensor cores for
        it, else in float32; None on a CPU.
      bfloat16: whether it has tensor cores for bfloat16; without them products run in float32.
      bandwidth: bytes per second between one device and its memory; None on a CPU.
      link: bytes per second that one device receives from others; None on a CPU.
      machine: devices that share those links in one machine; None where all do, as in a TPU slice.
      fused_head_dim: largest head size of the attention kernel there; 0 without one.
      fused_float32: whether that kernel takes float32, too.
    """

    kind: str
    count: int
    bytes: int
    flops: float | None = None
    bfloat16: bool = False
    bandwidth: float | None = None
    link: float | None = None
    machine: int | None = None
    fused_head_dim: int = 0
    fused_float32: bool = False

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"


class _Kind(NamedTuple):
    """A kind of device: memory in GB, its name in flops.PEAKS, memory bandwidth and link in GB/s,
    the largest head of the attention kernel, and float32 TFLOP/s where it has no bfloat16."""

    memory: int
    name: str
    bandwidth: float
    link: float
    head: int
    float32: float = 0.0


_ANY_HEAD_DIM = 1 << 30
_MAX_DEVICES = 1_000_000  # a larger count is a typing error
_GPUS_PER_MACHINE = 8  # at most

# Sources: Google's page of each TPU (docs.cloud.google.com/tpu/docs: HBM, and half of the ICI that
# it gives for both directions), NVIDIA's data sheet of each data center GPU (for the A10G the one
# that AWS publishes) and nvidia.com's specifications of each GeForce. A link is one direction of
# NVLink (A100, H100, H200, B200) or of PCIe with 16 lanes: 16 GB/s in generation 3, 32 in 4, 64 in
# 5; the bridge between two 3090 is not counted. A gigabyte of memory is taken as 10^9 bytes: some
# devices have the 2^30 that others call a gigabyte, none has less (the B200 that is sold with 180
# GB has 179 x 2^30 bytes).
_KINDS = {
    "v4": _Kind(32, "TPU v4", 1200, 300, _ANY_HEAD_DIM),
    "v5e": _Kind(16, "TPU v5e", 819, 200, _ANY_HEAD_DIM),
    "v5p": _Kind(95, "TPU v5p", 2765, 600, _ANY_HEAD_DIM),
    "v6e": _Kind(32, "TPU v6e", 1638, 400, _ANY_HEAD_DIM),
    "T4": _Kind(16, "", 320, 16, 0, float32=8.1),
    "L4": _Kind(24, "NVIDIA L4", 300, 32, 128),
    "A10G": _Kind(24, "NVIDIA A10G", 600, 32, 128),
    "L40S": _Kind(48, "NVIDIA L40S", 864, 32, 128),
    "A100-40GB": _Kind(40, "NVIDIA A100", 1555, 300, 128),
    "A100-80GB": _Kind(80, "NVIDIA A100", 2039, 300, 128),
    "H100": _Kind(80, "NVIDIA H100", 3350, 450, 256),
    "H200": _Kind(141, "NVIDIA H200", 4800, 450, 256),
    "B200": _Kind(192, "NVIDIA B200", 8000, 900, 256),
    "RTX 3090": _Kind(24, "NVIDIA GeForce RTX 3090", 936, 32, 128),
    "RTX 4090": _Kind(24, "NVIDIA GeForce RTX 4090", 1008, 32, 128),
    "RTX 5090": _Kind(32, "NVIDIA GeForce RTX 5090", 1792, 64, 256),
}
CPU = "cpu"  # this machine's, its memory shared out among them
KNOWN = (*_KINDS, CPU)
_ALIASES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "v6lite": "v6e",
    "B200-180GB": "B200",
    "3090": "RTX 3090",
    "4090": "RTX 4090",
    "5090": "RTX 5090",
}
_CORES = ("v4", "v5p")  # whose types count TensorCores, of which a chip has two


def devices(text: str) -> Devices:
    """Reads "8 x v5e", "4x4090", "H100 x 8", "RTX 4090" for one of them, and types of TPU slices.

    Names are those that makers, clouds, jax and people use: "RTX 4090", "4090", "NVIDIA GeForce RTX
    4090"; "H100-80GB"; "Tesla T4". A type is such as "v5litepod-64", 64 x v5e, or "v4-8", 4 x v4.

    Raises:
      UsageError: it is not of that form, or the kind is unknown, or there are too many.
    """
    kind, number = _read(text)
    if not 1 <= number <= _MAX_DEVICES:
        raise UsageError(
            f"--plan={text!r} is not COUNT x KIND with a COUNT of 1 to {_MAX_DEVICES:,}"
        )
    if kind == CPU:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Devices(kind=CPU, count=number, bytes=memory // number)
    one = _KINDS[kind]
    return Devices(
        kind=kind,
        count=number,
        bytes=one.memory * 10**9,
        flops=flops.peak(one.name) or one.float32 * 1e12,
        bfloat16=not one.float32,
        bandwidth=one.bandwidth * 1e9,
        link=one.link * 1e9,
        machine=None if one.head == _ANY_HEAD_DIM else _GPUS_PER_MACHINE,
        fused_head_dim=one.head,
        fused_float32=one.head == _ANY_HEAD_DIM,
    )


_FORMS = (
    r"(?P<kind>v\d\w*)-(?P<count>\d+)",  # a type of TPU slice
    r"(?P<count>\d+)\s*[x×*]?\s*(?P<kind>\S.*)",
    r"(?P<kind>.*\S)\s*[x×*]\s*(?P<count>\d+)",
)


def _read(text: str) -> tuple[str, int]:
    """Returns the kind and the count in `text`, by the first form that names a known kind."""
    known, text = _known(), text.strip()
    if kind := known.get(_plain(text)):
        return kind, 1
    found = [match for form in _FORMS if (match := re.fullmatch(form, text, re.IGNORECASE))]
    found = [match for match in found if match["kind"] not in "xX×*"]
    for match in found:
        if kind := known.get(_plain(match["kind"])):
            count = int(match["count"][:9])
            in_cores = kind in _CORES and match.re.pattern == _FORMS[0]
            return kind, count // 2 if in_cores else count
    named = found[0]["kind"] if found else text
    begun = _plain(named)
    some = [name for name in KNOWN if begun and _plain(name).startswith(begun)] or KNOWN
    if found or some is not KNOWN:
        raise UsageError(f"--plan={text!r}: {named!r} is none of {', '.join(some)}")
    raise UsageError(
        f"--plan={text!r} is not COUNT x KIND, such as '8 x v5e' or '1 x H200'; "
        f"kinds are {', '.join(KNOWN)}"
    )


def _known() -> dict[str, str]:
    """Maps the names in use to kinds; "H100-80GB" is the H100, which has 80 GB."""
    with_memory = {f"{name}{one.memory}": name for name, one in _KINDS.items()}
    names = {name: name for name in KNOWN} | with_memory | _ALIASES
    return {_plain(called): name for called, name in names.items()}


def _plain(kind: str) -> str:
    """Strips maker, series, and the words for memory and socket from a name."""
    words = r"nvidia|geforce|tesla|tpu|sxm\d?|hbm\d?e?"
    return re.sub(rf"\b(?:{words})(?=\b|_)|[\s_-]|gb\b", "", kind.lower())
