"""The judge that a config names, as a generator."""

from ml_collections import ConfigDict

from mcr_jax.errors import UsageError
from mcr_jax.generate.api import Generator, Remote


def make_judge(config: ConfigDict, name: str = "") -> Generator | Remote:
    """Makes the generator of a judge's name, by default `config.judge.name`.

    Raises:
      UsageError: there is none of that name, or it has no key.
    """
    section = config.judge
    name = name or section.name
    if name == "offline":
        from mcr_jax.judges.offline import OfflineJudge

        return OfflineJudge()
    if name == "gemini":
        from mcr_jax.generate.gemini import Gemini

        return Gemini(
            section.model,
            timeout=section.timeout,
            concurrency=section.concurrency,
            thinking=section.thinking,
            patience=section.patience,
        )
    raise UsageError(f"config field judge.name is {name!r}: set it to offline or gemini")
