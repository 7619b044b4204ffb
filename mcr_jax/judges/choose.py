"""Makes the judge that a config names, and the readers of its replies."""

from ml_collections import ConfigDict

from mcr_jax import model_specs
from mcr_jax.errors import UsageError
from mcr_jax.generate import services
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis, distortion, reasons

JUDGES = {"diagnosis": diagnosis, "reasons": reasons}  # of `mcr judge`, by ledger stage
_PARSED = {**JUDGES, distortion.STAGE: distortion}


def make_judge(config: ConfigDict, name: str = "") -> Generator | Remote:
    """Returns the generator of the judge `name`, by default `config.judge.name`.

    Raises:
      UsageError: the name is unknown, or the key of the service is missing.
    """
    section = config.judge
    name = name or section.name
    if name == "offline":
        from mcr_jax.judges.offline import OfflineJudge

        return OfflineJudge()
    named = model_specs.endpoints(config)
    if name not in (*services.KINDS, *named):
        listed = ", ".join((*services.KINDS, *named))
        raise UsageError(f"config field judge.name is {name!r}: set it to offline, {listed}")
    return services.make(
        name,
        section.model,
        named,
        timeout=section.timeout,
        concurrency=section.concurrency,
        thinking=section.thinking,
        patience=section.patience,
    )


def reader(stage: str, config: ConfigDict) -> Reader:
    """Returns the reader of a stage of `mcr judge`, or of `distortion.STAGE` in `mcr stitch`."""
    judge = _PARSED[stage]
    words = f" quote_words={config.judge.quote_words}" if stage != "diagnosis" else ""
    version = config.judge.version if stage in JUDGES else ""
    return Reader(parse=judge.parse, name=judge.READING + words, version=version)


def readings(config: ConfigDict) -> dict[str, str]:
    """Returns the name of each stage's parsing rules, settings included."""
    return {stage: reader(stage, config).name for stage in JUDGES}
