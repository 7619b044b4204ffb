"""Makes the judges that a config names, and the readers of their replies."""

from ml_collections import ConfigDict

from mcr_jax import judge_specs, model_specs
from mcr_jax.errors import UsageError
from mcr_jax.generate import services
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import diagnosis, distortion, reasons

JUDGES = {"diagnosis": diagnosis, "reasons": reasons}  # of `mcr judge`, by ledger stage
_PARSED = {**JUDGES, distortion.STAGE: distortion}


def make_judge(config: ConfigDict, kind: str) -> Generator | Remote:
    """Returns the judge that config.judge sets up for `kind`, for stages other than `mcr judge`.

    Raises:
      UsageError: the kind is unknown, or the key of the service is missing.
    """
    return _make(kind, config.judge.model, config)


def make_judges(config: ConfigDict) -> dict[str, dict[str, Generator | Remote]]:
    """Returns the generators of the judges by name and stage; equal models share one.

    Raises:
      UsageError: a judge is unknown, or the key of a service is missing.
    """
    made: dict[tuple[str, str], Generator | Remote] = {}
    for judge in judge_specs.judges(config):
        for _, kind, value in judge.models.values():
            if (kind, value) not in made:
                made[kind, value] = _make(kind, value, config)
    return {
        judge.name: {stage: made[spec.kind, spec.value] for stage, spec in judge.models.items()}
        for judge in judge_specs.judges(config)
    }


def _make(kind: str, model: str, config: ConfigDict) -> Generator | Remote:
    if kind == "offline":
        from mcr_jax.judges.offline import OfflineJudge

        return OfflineJudge()
    named = model_specs.endpoints(config)
    if kind not in (*services.KINDS, *named):
        listed = ", ".join((*services.KINDS, *named))
        raise UsageError(f"config field judge.name is {kind!r}: set it to offline, {listed}")
    section = config.judge
    return services.make(
        kind,
        model,
        named,
        timeout=section.timeout,
        concurrency=section.concurrency,
        thinking=section.thinking,
        patience=section.patience,
    )


def reader(stage: str, config: ConfigDict, version: str = "") -> Reader:
    """Returns the reader of a stage of `mcr judge`, or of `distortion.STAGE` in `mcr stitch`.

    Args:
      stage: in the ledger.
      config: reads `judge.quote_words`.
      version: the only model_version that counts; "" for any.
    """
    judge = _PARSED[stage]
    words = f" quote_words={config.judge.quote_words}" if stage != "diagnosis" else ""
    return Reader(parse=judge.parse, name=judge.READING + words, version=version)


def readings(config: ConfigDict) -> dict[str, str]:
    """Returns the name of each stage's parsing rules, settings included."""
    return {stage: reader(stage, config).name for stage in JUDGES}
