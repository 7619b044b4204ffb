"""Lists the installed configs; --config=NAME[:ARG] selects one."""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli import _shipped
from mcr_jax.cli.flags import Flags
from mcr_jax.config_fields import FIELDS


def main(argv: Sequence[str]) -> None:
    """Runs `mcr configs`."""
    flags = Flags("configs", __doc__)
    flags.boolean("fields", "list every field instead: default, meaning, allowed values, frozen by")
    if not flags.parse(argv):
        return
    if flags.values["fields"].value:
        for name, field in FIELDS.items():
            frozen = f"; frozen by {field.frozen}" if field.frozen else ""
            console.say(f"{name} = {field.default!r}  {field.meaning} ({field.allowed}{frozen})")
        return
    files = _shipped.configs()
    width = max(map(len, files))
    for name, path in files.items():
        console.say(f"{name:<{width}}  {_shipped.about(path)}")
