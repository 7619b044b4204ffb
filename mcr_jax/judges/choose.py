"""The judge that a config names, and the rules that its replies are read by."""

from ml_collections import ConfigDict

from mcr_jax.errors import UsageError
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis, reasons

JUDGES = {"diagnosis": diagnosis, "reasons": reasons}  # by stage, in the order they are asked


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


def reader(stage: str, config: ConfigDict) -> Reader:
    """Returns the rules that replies of a judging stage are read by."""
    judge = JUDGES[stage]
    words = f" quote_words={config.judge.quote_words}" if stage == "reasons" else ""
    return Reader(parse=judge.parse, name=judge.READING + words, version=config.judge.version)


def readings(config: ConfigDict) -> dict[str, str]:
    """Returns the name of the parsing rules, with their settings, by judging stage."""
    return {stage: reader(stage, config).name for stage in JUDGES}
