"""Asks a judge whether traces keep the meaning of the statements; its verdicts go to the ledger."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, console, prompts
from mcr_jax.cases import Case
from mcr_jax.config import judge_name
from mcr_jax.errors import McrError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Generator, Outcome, Remote
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, damaged
from mcr_jax.generate.questions import Reader
from mcr_jax.judges import distortion

STAGE = "distortion"
_FORM = {"verdicts": [str], "added": [str]}  # of a verdict in the ledger

# Why a trace may not be trained on, from the gravest on.
FAULTS = ("unjudged", "turned", "dropped", "invented")


class Meaning:
    """The judge that config.stitch.judge names, at work on the traces of one model.

    Attributes:
      about: who judges and by what, for the artifacts.
      verdicts: the newest attempt at each trace that was asked about, by its row.
    """

    def __init__(
        self, ledger: Ledger, config: ConfigDict, generator: Generator | Remote, model: str
    ):
        self.about = {"identity": generator.identity, **settings(config)}
        self.verdicts: dict[RowKey, Attempt | None] = {}
        self._ledger, self._generator, self._settings = ledger, generator, config.judge
        self._prompt, self._coverage = _prompt(config), config.stitch.coverage
        self._reader = Reader(parse=distortion.parse, name=_reading(config))
        self._scope = Scope(STAGE, model, judge_name(config, config.stitch.judge))
        self._jobs: list[driver.Job] = []

    def row(self, case: Case, sample: int) -> RowKey:
        """The row of the verdict on one sample of a case."""
        stage, model, judge = self._scope
        return RowKey(stage=stage, case=case.fingerprint, model=model, sample=sample, judge=judge)

    def judge(self, traces: Iterable[tuple[Case, int, str]]) -> None:
        """Adds the verdicts on traces (case, index of the sample, text); none is asked for twice.

        What the judge gave no verdict on is asked again by the next run, not by the next call.

        Raises:
          McrError: some verdicts could not be had at all.
        """
        new = set()
        for case, sample, trace in traces:
            new.add(row := self.row(case, sample))
            key, c = f"{case.fingerprint}/{row.model}/{sample}/{STAGE}", self._settings
            limits = {"quote_words": c.quote_words, "max_tokens": c.max_tokens}
            request = distortion.request(key, case, trace, self._prompt, **limits)
            self._jobs.append(driver.Job(row=row, request=request))
        generator = self._generator
        work = driver.declare(
            self._scope,
            self._jobs,
            generator,
            self._ledger,
            attempts=self._settings.attempts,
            reader=self._reader,
        )
        pending = [q for q in work.pending if any(row.key in new for row in q.rows)]
        work = dataclasses.replace(work, pending=pending)
        status = generator.pacer.status if isinstance(generator, Remote) else None
        with console.track("distortion", work.total, work.held, status) as progress:
            summary = driver.answer(work, generator, self._ledger, progress=progress.advance)
        self.verdicts = self._ledger.answers(self._scope)
        left = [a for a in self.verdicts.values() if a is None or not a.outcome.settled]
        if left:
            why = f" ({summary.errors[0]})" if summary.errors else ""
            raise McrError(
                f"{len(left)} of {work.total} verdicts on traces could not be had{why}; the others "
                "are kept: run `mcr stitch` again to go on"
            )
        for attempt in self.verdicts.values():
            verdict = verdict_of(attempt)
            if verdict is not None and (line := artifacts.wrong(verdict, _FORM)):
                raise McrError(damaged(attempt, f"is of another form: {line}"))

    def faults(self, row: RowKey) -> tuple[str, ...]:
        """Some of FAULTS, in their order; none for a trace that nobody was asked about."""
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
        return tuple(fault for fault, there in found.items() if there)

    def coverage(self, row: RowKey) -> float | None:
        """Share of the statements that a trace keeps; None where there is no verdict."""
        verdict = verdict_of(self.verdicts.get(row))
        return None if verdict is None else distortion.share(verdict, distortion.KEPT)


def verdict_of(attempt: Attempt | None) -> dict[str, Any] | None:
    """The verdict of an attempt, as `distortion.parse` returns it; None where there is none."""
    return attempt.verdict if attempt and attempt.outcome is Outcome.OK else None


def settings(config: ConfigDict) -> dict[str, Any]:
    """What the verdicts follow from, besides statements and traces; {} where nothing is judged.

    Raises UsageError if the prompt cannot be used.
    """
    if not config.stitch.judge:
        return {}
    return {
        "judge": judge_name(config, config.stitch.judge),
        "prompt": _prompt(config).digest,
        "reading": _reading(config),
        "max_tokens": config.judge.max_tokens,
        "thinking": config.judge.thinking,
    }


def _prompt(config: ConfigDict) -> prompts.Prompt:
    return prompts.load(distortion.PROMPT, config.prompts)


def _reading(config: ConfigDict) -> str:
    return f"{distortion.READING} quote_words={config.judge.quote_words}"
