"""Names of an experiment's decoders."""

from mcr_jax.errors import UsageError

UNTRAINED, TRAINED = "base", "sft"
NAMES = (UNTRAINED, TRAINED)


def check_name(name: str) -> None:
    """Raises UsageError unless an experiment has a decoder of that name."""
    if name not in NAMES:
        raise UsageError(f"there is no model {name!r}: there are {UNTRAINED} and {TRAINED}")
