"""Several judges, and several verdicts of one: agreement with the headline, and repeatability."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, judge_specs, statistics
from mcr_jax.agreement import agreements, tabulated
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.joined import Joined, Sample, rejudged
from mcr_jax.generate.ledger import Attempt, Ledger, damaged
from mcr_jax.judge_specs import Judge
from mcr_jax.score.samples import flags, kind, majority, right
from mcr_jax.workdir import Workdir

Votes = Sequence[bool | None]  # on one diagnosis or one statement, one per repeat


def further(
    ledger: Ledger, config: ConfigDict, first: Joined
) -> Iterator[tuple[Judge, dict[str, list[Sample]]]]:
    """Yields each judge after the first, one at a time to save memory.

    With it, all its verdicts on the completions of `first`, also those that do not count.
    """
    for judge in judge_specs.judges(config)[1:]:
        yield judge, rejudged(ledger, config, judge, first.models)


def about(
    judge: Judge, joined: Joined, first: Joined, workdir: Workdir, config: ConfigDict
) -> dict[str, Any]:
    """Returns what results.json says of a further judge, without its metrics.

    Args:
      judge: the judge.
      joined: its verdicts.
      first: the verdicts of the headline on the same completions.
      workdir: its manifest names the judge's identity and retirement notices.
      config: reads `judge`, `score` and `seed`.

    Raises:
      McrError: a verdict or the manifest has another form.
    """
    facts = noted(workdir, judge, config)
    told = {name: facts[name] for name in ("identity", "status") if name in facts}
    if joined.mixed:
        told["note"] = (
            "it reported several versions, so it has no value; name it first in "
            "config.judge.models, and in config.judge.version the version that counts"
        )
    return {
        **told,
        "verdicts": verdict_counts(joined, config),
        "versions": joined.versions,
        "agreement": compared(first, joined, config),
        **(repeated(joined, config) if config.judge.repeat > 1 else {}),
    }


def noted(workdir: Workdir, judge: Judge, config: ConfigDict) -> dict[str, Any]:
    """Returns the facts of a judge in the manifest, whichever judge was the first by then.

    Raises McrError if the manifest has another form.
    """
    first = artifacts.section(workdir, "judge", {"name?": str, "identity?": str})
    if first and first.get("name", judge_specs.headline(config).name) == judge.name:
        return first
    form = {f"{judge.name}?": {"identity?": str}}
    return artifacts.section(workdir, "judges", form).get(judge.name, {})


def verdict_counts(joined: Joined, config: ConfigDict) -> dict[str, dict[str, int]]:
    """Counts, per stage, the verdicts that the completions need and those that are there."""
    said = [s for samples in joined.models.values() for s in samples if s.said is not None]
    wanted = {
        "diagnosis": [v for s in said if s.said.answer is not None for v in s.diagnoses],
        "reasons": [
            v
            for s in said
            if s.said.trace and s.row.sample < config.judge.recall_samples
            for v in s.recalls
        ],
    }
    return {
        stage: {"wanted": len(verdicts), "settled": sum(map(_settled, verdicts))}
        for stage, verdicts in wanted.items()
    }


def compared(first: Joined, other: Joined, config: ConfigDict) -> dict[str, Any]:
    """Compares the verdicts of two judges on the same completions, of all models together.

    Returns:
      For "diagnosis" (one unit per completion) and "reasons" (one per statement, found or not):
      "n", the units that both resolved, with "raw" agreement, "kappa" and "ac1" of
      `agreement.agreements`.

    Raises:
      McrError: a verdict is of another form, or of other statements than that of the other judge.
    """
    by_case = {stage: collections.defaultdict(list) for stage in judge_specs.STAGES}
    for model, samples in first.models.items():
        for a, b in zip(samples, other.models[model], strict=True):
            units = {"diagnosis": [(_diagnosis(a), _diagnosis(b))], "reasons": _both(a, b)}
            for stage, of_stage in units.items():
                says = [(majority(of_a), majority(of_b)) for of_a, of_b in of_stage]
                by_case[stage][a.row.case] += [pair for pair in says if None not in pair]
    found = {}
    for stage, pairs in by_case.items():
        tables = [tabulated(pairs[case]) for case in sorted(pairs)]
        named = agreements(
            tables,
            confidence=config.score.confidence,
            resamples=config.score.resamples,
            seed=config.seed,
        )
        found[stage] = {"n": sum(map(len, pairs.values())), "raw": named.pop("agreement"), **named}
    return found


def repeated(joined: Joined, config: ConfigDict) -> dict[str, Any]:
    """Returns {"repeat", "repeatability"} of a judge with several verdicts per completion.

    Repeatability is the share of units with the same verdict in every repeat, with an interval over
    cases, by stage. Units are completions and, for reasons, statements; a unit counts if every
    repeat is there.
    """
    found = {}
    for stage, of_sample in (("diagnosis", _diagnosis), ("reasons", _statements)):
        by_case = collections.defaultdict(list)
        for samples in joined.models.values():
            for sample in samples:
                units = of_sample(sample)
                for votes in [units] if stage == "diagnosis" else units:
                    if votes and None not in votes:
                        by_case[sample.row.case].append(len(set(votes)) == 1)
        found[stage] = _share(by_case.values(), config)
    return {"repeat": config.judge.repeat, "repeatability": found}


def _share(by_case: Iterable[Sequence[bool]], config: ConfigDict) -> dict[str, Any]:
    """Returns the mean over cases of a share, with its interval."""
    cases = [sum(units) / len(units) for units in by_case]
    if not cases:
        return {"cases": 0, **dict.fromkeys(("value", "low", "high"))}
    low, high = statistics.interval(
        cases,
        confidence=config.score.confidence,
        resamples=config.score.resamples,
        seed=config.seed,
    )
    return {"cases": len(cases), "value": statistics.mean(cases), "low": low, "high": high}


def _diagnosis(sample: Sample) -> Votes:
    """Returns the verdicts on a completion; () where no judge is needed."""
    if sample.said is None or sample.said.answer is None:
        return ()
    ended = kind(sample.outcome, sample.said)
    return [right(ended, verdict) for verdict in sample.diagnoses]


def _statements(sample: Sample) -> list[Votes]:
    """Returns the verdicts on each statement, [] where a repeat is missing.

    Raises McrError if the repeats are of different statements.
    """
    if not all(map(_settled, sample.recalls)):
        return []
    by_repeat = [flags(verdict, "found") for verdict in sample.recalls]
    _refuse_unequal(sample, by_repeat)
    return list(zip(*by_repeat, strict=True))


def _both(a: Sample, b: Sample) -> list[tuple[Votes, Votes]]:
    """Returns the verdicts of two judges on each statement, [] where one has none."""
    votes = _statements(a), _statements(b)
    if not all(votes):
        return []
    _refuse_unequal(b, votes)
    return list(zip(*votes, strict=True))


def _refuse_unequal(sample: Sample, verdicts: Sequence[Sequence[Any]]) -> None:
    if len({len(statements) for statements in verdicts}) > 1:
        counts = " and of ".join(str(len(statements)) for statements in verdicts)
        raise McrError(damaged(sample.reasons, f"and another are of {counts} statements"))


def _settled(verdict: Attempt | None) -> bool:
    return verdict is not None and verdict.outcome is Outcome.OK
