"""Judges whether traces keep the meaning of the statements; the verdicts go to the ledger."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, console, prompts
from mcr_jax.cases import Case
from mcr_jax.config import judge_name
from mcr_jax.errors import McrError
from mcr_jax.generate import driver, forecast
from mcr_jax.generate.api import Generator, Outcome, Remote
from mcr_jax.generate.budget import Payments
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, damaged
from mcr_jax.judges import distortion
from mcr_jax.judges.choose import reader

_VERDICT_FORM = {"verdicts": [str], "added": [str]}  # in the ledger

# Reasons not to train on a trace, most serious first.
FAULTS = ("unjudged", "turned", "dropped", "invented")


class Meaning:
    """Judges the traces of one model with the judge of config.stitch.judge.

    Attributes:
      about: identity and settings of the judge, for the artifacts.
      verdicts: newest attempt at each verdict, by row.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: ConfigDict,
        generator: Generator | Remote,
        model: str,
        payments: Payments | None = None,
    ):
        self.about = {"identity": generator.identity, **settings(config)}
        self.verdicts: dict[RowKey, Attempt | None] = {}
        self._ledger, self._generator, self._settings = ledger, generator, config.judge
        self._prompt, self._coverage = _prompt(config), config.stitch.coverage
        self._reader = reader(distortion.STAGE, config)
        self._scope = Scope(distortion.STAGE, model, judge_name(config, config.stitch.judge))
        self._jobs: list[driver.Job] = []
        self._payments = payments

    def row(self, case: Case, sample: int) -> RowKey:
        """Returns the row of the verdict on one sample of a case."""
        stage, model, judge = self._scope
        return RowKey(stage=stage, case=case.fingerprint, model=model, sample=sample, judge=judge)

    def judge(self, traces: Iterable[tuple[Case, int, str]]) -> None:
        """Judges traces (case, sample index, text) that have no verdict yet.

        A reply without a verdict is requested again by the next run, not by the next call.

        Raises:
          McrError: requests failed, or a stored verdict is damaged.
        """
        new = set()
        for case, sample, trace in traces:
            new.add(row := self.row(case, sample))
            key, c = f"{case.fingerprint}/{row.model}/{sample}/{row.stage}", self._settings
            limits = {"quote_words": c.quote_words, "max_tokens": c.max_tokens}
            request = distortion.request(key, case, trace, self._prompt, **limits)
            self._jobs.append(driver.Job(row=row, request=request))
        generator = self._generator
        scope, settings = self._scope, {"attempts": self._settings.attempts, "reader": self._reader}
        work = driver.declare(scope, self._jobs, generator, self._ledger, **settings)
        pending = [q for q in work.pending if any(row.key in new for row in q.rows)]
        work = dataclasses.replace(work, pending=pending)
        if self._payments and (line := forecast.line(pending, self._payments, self._ledger)):
            console.say(f"stitch: {line}")
        status = generator.pacer.status if isinstance(generator, Remote) else None
        with console.track("distortion", work.total, work.held, status) as progress:
            summary = driver.answer(
                *(work, generator, self._ledger),
                progress=progress.advance,
                payments=self._payments,
            )
        self.verdicts = self._ledger.answers(scope)
        left = [a for a in self.verdicts.values() if a is None or not a.outcome.settled]
        if left:
            why = f" ({summary.errors[0]})" if summary.errors else ""
            raise McrError(
                f"{len(left)} of {work.total} verdicts on traces are missing{why}; the others are "
                "kept: run `mcr stitch` again to resume"
            )
        for attempt in self.verdicts.values():
            verdict = verdict_of(attempt)
            if verdict is not None and (line := artifacts.wrong(verdict, _VERDICT_FORM)):
                raise McrError(damaged(attempt, f"is of another form: {line}"))

    def faults(self, row: RowKey) -> tuple[str, ...]:
        """Returns a subset of FAULTS, in their order; () for a trace that was not judged."""
        if row not in self.verdicts:
            return ()
        verdict = verdict_of(self.verdicts[row])
        if verdict is None:
            return ("unjudged",)
        found = {
            "turned": distortion.TURNED in verdict["verdicts"],
            "dropped": distortion.share(verdict, distortion.KEPT) < self._coverage,
            "invented": bool(verdict["added"]),
        }
        return tuple(fault for fault, present in found.items() if present)

    def coverage(self, row: RowKey) -> float | None:
        """Returns the share of the statements that a trace keeps; None without a verdict."""
        verdict = verdict_of(self.verdicts.get(row))
        return None if verdict is None else distortion.share(verdict, distortion.KEPT)


def verdict_of(attempt: Attempt | None) -> dict[str, Any] | None:
    """Returns the verdict of an attempt, as `distortion.parse` returns it, or None."""
    return attempt.verdict if attempt and attempt.outcome is Outcome.OK else None


def settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that decide verdicts, for the artifacts; {} without a judge.

    Raises UsageError if the prompt is invalid.
    """
    if not config.stitch.judge:
        return {}
    return {
        "judge": judge_name(config, config.stitch.judge),
        "prompt": _prompt(config).digest,
        "reading": reader(distortion.STAGE, config).name,
        "max_tokens": config.judge.max_tokens,
        "thinking": config.judge.thinking,
    }


def _prompt(config: ConfigDict) -> prompts.Prompt:
    return prompts.load(distortion.PROMPT, config.prompts)
