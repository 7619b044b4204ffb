"""Writes traces: a model rewrites the numbered statements of a case as one fluent passage.

By default that model is the one to be fine-tuned, so that no stronger model's knowledge leaks into
the target. The prompt holds the statements only. With the presentation, a model invents reasons
from findings that no statement uses; with the diagnosis, it may name it early.

Every reply is in the ledger. A sample that fails the audit or config.stitch.judge is replaced by
the next sample, up to config.stitch.attempts, then by the joined statements. The judge reads the
first sample of every case, to measure what stitching does, and each later one that passes the
audit.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.traces import JOINED, STITCHED, Trace
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import driver, forecast
from mcr_jax.generate.api import Generator, Outcome, Remote, Request
from mcr_jax.generate.budget import Payments
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.prompts import Prompt, inert
from mcr_jax.statements import number_statements
from mcr_jax.stitch import audit, meaning
from mcr_jax.stitch.audit import Audit, Auditor, Limits, joined, trace_of
from mcr_jax.stitch.meaning import Meaning

STAGE = "stitch"
PROMPT = "stitch"

# Outcomes without a whole text. All reasons to reject a sample are in REASONS, most serious first.
_OUTCOMES = {
    Outcome.PROMPT_TOO_LONG: "prompt_too_long",
    Outcome.BLOCKED: "blocked",
    Outcome.MALFORMED: "malformed",
    Outcome.TRUNCATED: "truncated",
}
_THOUGHT_TOKENS = 8192  # added to max_tokens for a service whose limit includes thoughts
REASONS = (*_OUTCOMES.values(), *audit.FAULTS, *meaning.FAULTS)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Reply, its trace, and the findings in it.

    Attributes:
      attempt: the reply.
      trace: "" without text.
      audit: None without text.
      distortions: faults that the judge found, a subset of `meaning.FAULTS`.
      coverage: share of the statements that the trace keeps; None if not judged.
    """

    attempt: Attempt
    trace: str
    audit: Audit | None
    distortions: tuple[str, ...] = ()
    coverage: float | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons not to train on it, in the order of REASONS."""
        ending = _OUTCOMES.get(self.attempt.outcome)
        audited = self.audit.faults if self.audit else ()
        return (*((ending,) if ending else ()), *audited, *self.distortions)

    @property
    def final(self) -> bool:
        """True if no further sample is needed or possible."""
        return not self.faults or self.attempt.outcome is Outcome.PROMPT_TOO_LONG


def check(config: ConfigDict, prompt: Prompt) -> None:
    """Raises UsageError if the prompt is invalid, or all attempts would be equal."""
    c = config.stitch
    if c.attempts > 1 and not c.temperature:
        raise UsageError(
            f"config.stitch.attempts={c.attempts} with config.stitch.temperature=0 would draw "
            "the same sample again: set the temperature above 0, or attempts to 1"
        )
    prompt.render(statements="")


def stitch(
    ledger: Ledger,
    config: ConfigDict,
    cases: Sequence[Case],
    generator: Generator | Remote,
    model: str,
    prompt: Prompt,
    status: Callable[[], str] | None = None,
    judge: Meaning | None = None,
    payments: Payments | None = None,
) -> list[Trace]:
    """Returns one trace per case, in order; requests only replies that the ledger lacks.

    Args:
      ledger: records every reply.
      config: `stitch` and `seed` are read.
      cases: all cases of training; their diagnoses are the names that the audit knows.
      generator: writes the traces.
      model: name of the generator in the ledger.
      prompt: takes `statements`, one numbered line each.
      status: returns the generator's status for the progress line.
      judge: judges the traces; None to skip judging.
      payments: to the service of a remote generator.

    Raises:
      UsageError: the prompt is invalid, or all attempts would be equal.
      McrError: requests for replies or verdicts failed; those that succeeded are in the ledger.
    """
    check(config, prompt)
    c = config.stitch
    auditor = Auditor(cases, Limits(shortest=c.shortest, longest=c.longest))
    samples: dict[str, list[_Sample]] = {case.fingerprint: [] for case in cases}
    for drawn in range(1, c.attempts + 1):
        again = [case for case in cases if not any(s.final for s in samples[case.fingerprint])]
        if not again:
            break
        # Includes finished cases: a declaration replaces the one before it.
        wanted = {f: len(found) for f, found in samples.items()}
        wanted |= {case.fingerprint: drawn for case in again}
        jobs = [_job(case, wanted[case.fingerprint], config, model, prompt) for case in cases]
        answers = _answers(jobs, generator, ledger, model, drawn, status, payments)
        with console.track("audit", len(again)) as progress:
            for case in again:
                row = RowKey(stage=STAGE, case=case.fingerprint, model=model, sample=drawn - 1)
                samples[case.fingerprint].append(_sample(case, answers[row], auditor))
                progress.advance()
        if judge is not None:
            _judge(judge, again, samples, drawn - 1)
    return [_trace(case, samples[case.fingerprint], auditor, model, prompt) for case in cases]


def _judge(
    judge: Meaning, cases: Sequence[Case], samples: dict[str, list[_Sample]], index: int
) -> None:
    """Judges the newest samples of `cases`, which have `index`, and adds the findings to them."""
    newest = {case: samples[case.fingerprint][-1] for case in cases}
    judged = {c: s for c, s in newest.items() if s.trace and not (index and s.faults)}
    judge.judge((case, index, sample.trace) for case, sample in judged.items())
    for case, sample in judged.items():
        row = judge.row(case, index)
        found = {"distortions": judge.faults(row), "coverage": judge.coverage(row)}
        samples[case.fingerprint][-1] = dataclasses.replace(sample, **found)


def _job(case: Case, wanted: int, config: ConfigDict, model: str, prompt: Prompt) -> driver.Job:
    c = config.stitch
    lines = number_statements([" ".join(statement.split()) for statement in case.statements])
    request = Request(
        key=case.fingerprint,
        messages=({"role": "user", "content": prompt.render(statements=inert(lines))},),
        n=c.attempts,
        temperature=c.temperature,
        top_p=c.top_p,
        max_tokens=c.max_tokens + (_THOUGHT_TOKENS if c.model == "gemini" else 0),
        seed=config.seed,
        indices=tuple(range(wanted)),
        fields={"statements": case.statements},
    )
    row = RowKey(stage=STAGE, case=case.fingerprint, model=model, sample=0)
    return driver.Job(row=row, request=request)


def _answers(
    jobs: Sequence[driver.Job],
    generator: Generator | Remote,
    ledger: Ledger,
    model: str,
    drawn: int,
    status: Callable[[], str] | None,
    payments: Payments | None,
) -> Mapping[RowKey, Attempt]:
    """Returns the newest attempt at every wanted row. Raises McrError if a row is still open."""
    scope = Scope(STAGE, model)
    work = driver.declare(scope, jobs, generator, ledger)
    if payments and (line := forecast.line(work.pending, payments, ledger)):
        console.say(f"stitch: {line}")
    label = f"stitch, sample {drawn} of a case" if drawn > 1 else "stitch"
    with console.track(label, work.total, work.held, status) as progress:
        advance = progress.advance
        summary = driver.answer(work, generator, ledger, progress=advance, payments=payments)
    answers = ledger.answers(scope)
    left = [row for row, a in answers.items() if a is None or not a.outcome.settled]
    if left:
        why = f" ({summary.errors[0]})" if summary.errors else ""
        raise McrError(
            f"{len(left)} of {work.total} traces are missing{why}; the others are kept: run "
            "`mcr stitch` again to resume"
        )
    return answers


def _sample(case: Case, attempt: Attempt, auditor: Auditor) -> _Sample:
    if attempt.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return _Sample(attempt, "", None)
    trace = trace_of(attempt.text)
    if not trace and attempt.outcome is Outcome.TRUNCATED:  # it holds thoughts only
        return _Sample(attempt, "", None)
    return _Sample(attempt, trace, auditor.audit(case, trace))


def _trace(
    case: Case, samples: Sequence[_Sample], auditor: Auditor, model: str, prompt: Prompt
) -> Trace:
    first, last = samples[0], samples[-1]
    passed = not last.faults
    trace = last.trace if passed else joined(case)
    kept = last.audit if passed else auditor.audit(case, trace)
    return Trace(
        fingerprint=case.fingerprint,
        split=case.split,
        trace=trace,
        source=STITCHED if passed else JOINED,
        model=model,
        model_version=last.attempt.model_version,
        prompt=prompt.digest,
        attempts=len(samples),
        outcomes=tuple(sample.attempt.outcome.value for sample in samples),
        faults_first=first.faults,
        faults=last.faults,
        coverage_first=first.coverage,
        coverage=last.coverage if passed else 1.0,
        additions_first=first.audit.added if first.audit else (),
        additions=kept.added,
        length_first=first.audit.length if first.audit else None,
        length=kept.length,
    )
