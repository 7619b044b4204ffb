"""Lists the configs that are installed; --config=NAME[:ARG] takes their names."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli import _shipped
from mcr_jax.cli.flags import Flags


def main(argv: Sequence[str]) -> None:
    """`mcr configs`."""
    flags = Flags("configs", __doc__)
    if not flags.parse(argv):
        return
    files = _shipped.configs()
    width = max(map(len, files))
    for name, path in files.items():
        console.say(f"{name:<{width}}  {_shipped.about(path)}")
