"""Verification: recomputes every number of results.json from the replies in the ledger.

Each stored verdict is compared with one parsed again from the judge's reply, by the code that
parses replies when they arrive: a verdict edited by hand shows as a difference.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mcr_jax import artifacts, judge_specs, prompts
from mcr_jax.cases import Case
from mcr_jax.errors import McrError
from mcr_jax.generate import spending
from mcr_jax.generate.api import Outcome, Request
from mcr_jax.generate.joined import Sample, counting, read_all, uncollected
from mcr_jax.generate.ledger import Attempt, opened
from mcr_jax.judge_specs import Judge
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.score import several
from mcr_jax.score.cost import as_stored
from mcr_jax.score.results import tabulate
from mcr_jax.workdir import Workdir

# Fields that older versions did not write: no difference where they are absent.
_ADDED_LATER = re.compile(r"config\.models|comparisons\[\d+\]\.equal")
_SHOWN = 160  # characters of a value in a line
_LARGEST = 1e300  # no number of results.json is larger


class Verified(NamedTuple):
    """Result of `verify`.

    Attributes:
      differences: one line per value or verdict that differs when it is computed again.
      verdicts: number of verdicts parsed again from their replies.
      unchecked: number of verdicts not parsed again, because their cases are missing.
    """

    differences: list[str]
    verdicts: int
    unchecked: int


def verify(workdir: Workdir, config: ConfigDict, cases: Sequence[Case]) -> Verified:
    """Parses every verdict again and recomputes results.json and scores.json from the ledger.

    Numbers are compared to nine digits: processors may sum differently.

    Args:
      workdir: holds the ledger, results.json and scores.json.
      config: a resolved config, as for `score`.
      cases: the evaluated cases; parsing a reasons verdict takes the statements of its case, and
        without them the verdict counts as unchecked.

    Raises:
      McrError: a file is missing or broken, results.json is of other judges than the config's, or
        the ledger cannot be scored.
    """
    judge, again, lines = judge_specs.headline(config), _Again(config, cases), []
    with opened(workdir, readonly=True) as ledger:
        models = read_all(ledger, config, judge)
        _refuse_other_judges(workdir, config)
        lines += again.of_models(models)
        joined = counting(models, judge)
        others = again.checked(several.further(ledger, config, joined), lines)
        results, scores = tabulate(joined, others, workdir, config)
        spent = spending.read(ledger)
    stored = [workdir.read_json(path) for path in (workdir.results, workdir.scores)]
    fresh = as_stored(stored[0], results, spent, workdir), scores
    for path, old, new in zip((workdir.results, workdir.scores), stored, fresh, strict=True):
        if json.dumps(old, sort_keys=True) != json.dumps(
            new, sort_keys=True
        ):  # cheap; most are equal
            lines += [f"{path.name}: {line}" for line in _differences(old, new, "")]
    return Verified(lines, again.verdicts, again.unchecked)


def _refuse_other_judges(workdir: Workdir, config: ConfigDict) -> None:
    """Raises McrError if results.json was made with other judges than those of the config."""
    first, *others = (judge.name for judge in judge_specs.judges(config))
    then, now = (
        f"{'judges' if names[1:] else 'judge'} {', '.join(names)}"
        for names in (artifacts.judges(workdir), [first, *sorted(others)])
    )
    if then != now:
        raise McrError(
            f"{workdir.results} is of {then}, and the config now names {now}: run `mcr score`, or "
            "`mcr eval`, to make it anew"
        )


class _Again:
    """Parses replies again.

    Attributes:
      verdicts, unchecked: counts so far, as in `Verified`.
    """

    def __init__(self, config: ConfigDict, cases: Sequence[Case]):
        prompt, words = prompts.load(reasons.PROMPT, config.prompts), config.judge.quote_words
        self._asked = {
            case.fingerprint: reasons.request("", case, "", prompt, quote_words=words)
            for case in cases
        }
        self.verdicts = self.unchecked = 0

    def of_models(self, models: Mapping[str, Sequence[Sample]]) -> list[str]:
        """Returns a line for each verdict that differs when it is parsed again."""
        with uncollected():
            return [
                line
                for samples in models.values()
                for sample in samples
                for line in self._differences(sample)
            ]

    def checked(
        self, judges: Iterable[tuple[Judge, dict[str, list[Sample]]]], lines: list[str]
    ) -> Iterator[tuple[Judge, dict[str, list[Sample]]]]:
        """Yields `judges`, and adds the lines of `of_models` on each to `lines`."""
        for judge, models in judges:
            lines += self.of_models(models)
            yield judge, models

    def _differences(self, sample: Sample) -> Iterator[str]:
        """Yields a line for each verdict on a completion that differs when parsed again."""
        for attempt in (*sample.diagnoses, *sample.recalls):
            if attempt is None or attempt.outcome not in (Outcome.OK, Outcome.MALFORMED):
                continue
            if attempt.row.stage == "reasons" and sample.row.case not in self._asked:
                self.unchecked += 1
                continue
            self.verdicts += 1
            stored = attempt.verdict if attempt.outcome is Outcome.OK else None
            try:
                verdict, given = self._read(sample, attempt), ""
            except ValueError as error:
                verdict, given = None, f"none: {error}"
            if stored != verdict:
                row = attempt.row
                repeat = f", repeat {row.repeat}" if row.repeat else ""
                yield (
                    f"ledger row {attempt.id}, {row.stage} of case {row.case[:12]}, model "
                    f"{row.model}, sample {row.sample}{repeat}: the verdict is {_short(stored)}, "
                    f"its reply gives {given or _short(verdict)}"
                )

    def _read(self, sample: Sample, attempt: Attempt) -> Any:
        """Returns the verdict in a reply. Raises ValueError if it holds none."""
        if attempt.row.stage == "diagnosis":
            return diagnosis.parse(Request(key="", messages=()), attempt.text)
        asked = self._asked[sample.row.case]
        fields = {**asked.fields, "trace": sample.said.trace}
        return reasons.parse(dataclasses.replace(asked, fields=fields), attempt.text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _differences(stored: Any, fresh: Any, path: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(fresh, dict):
        for key in sorted(stored.keys() | fresh.keys()):
            at = f"{path}.{key}" if path else key
            if key not in stored and _ADDED_LATER.fullmatch(at):
                continue
            yield from _differences(stored.get(key, "absent"), fresh.get(key, "absent"), at)
    elif isinstance(stored, list) and isinstance(fresh, list) and len(stored) == len(fresh):
        for position, pair in enumerate(zip(stored, fresh, strict=True)):
            yield from _differences(*pair, f"{path}[{position}]")
    elif not _agree(stored, fresh):
        yield f"{path} is {_short(stored)}, recomputed {_short(fresh)}"


def _agree(stored: Any, fresh: Any) -> bool:
    numbers = (int, float)
    if isinstance(stored, bool) or isinstance(fresh, bool):
        return stored is fresh
    if isinstance(stored, numbers) and isinstance(fresh, numbers):
        if abs(stored) > _LARGEST:  # math.isclose raises for an integer beyond floats
            return False
        return math.isclose(stored, fresh, rel_tol=1e-9, abs_tol=1e-12)
    return stored == fresh
