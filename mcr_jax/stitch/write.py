"""The stitching stage: a clinician's numbered statements of a case to one fluent reasoning trace.

By default the model that is about to be fine-tuned writes it, so that no stronger model's knowledge
leaks into the target. It is shown the statements alone. Not the presentation: of findings that no
statement uses a model makes reasons that no clinician gave. Nor the diagnosis: what it does not
know it cannot give away. So all that a trace has beyond the statements is the model's own.

Every reply is in the ledger. One that fails the audit, or in which config.stitch.judge finds
statements turned or left out or something added, is drawn again as the next sample, up to
config.stitch.attempts; then the statements, plainly joined, take its place. The judge is asked
about the first sample of every case, so that it is known what stitching does, and about each later
one that passes the audit.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.traces import JOINED, STITCHED, Trace
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Generator, Outcome, Remote, Request
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.prompts import Prompt, inert
from mcr_jax.statements import number_statements
from mcr_jax.stitch import audit, meaning
from mcr_jax.stitch.audit import Audit, Auditor, Limits, joined, trace_of
from mcr_jax.stitch.meaning import Meaning

STAGE = "stitch"
PROMPT = "stitch"

# Why a sample is no trace, from the gravest on: it has no whole text, or audit or judge say so.
_OUTCOMES = {
    Outcome.PROMPT_TOO_LONG: "prompt_too_long",
    Outcome.BLOCKED: "blocked",
    Outcome.MALFORMED: "malformed",
    Outcome.TRUNCATED: "truncated",
}
_THOUGHTS = 8192  # tokens beyond max_tokens for a service that counts its thoughts with the answer
REASONS = (*_OUTCOMES.values(), *audit.FAULTS, *meaning.FAULTS)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A reply, the trace in it, and what is found in that.

    Attributes:
      attempt: the reply.
      trace: "" where there is no text.
      audit: None where there is no text.
      distortions: what the judge finds, some of `meaning.FAULTS`.
      coverage: share of the statements that the trace keeps; None where no judge says.
    """

    attempt: Attempt
    trace: str
    audit: Audit | None
    distortions: tuple[str, ...] = ()
    coverage: float | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why it may not be trained on, in the order of REASONS."""
        ending = _OUTCOMES.get(self.attempt.outcome)
        audited = self.audit.faults if self.audit else ()
        return (*((ending,) if ending else ()), *audited, *self.distortions)

    @property
    def final(self) -> bool:
        """Whether another sample is not asked for."""
        return not self.faults or self.attempt.outcome is Outcome.PROMPT_TOO_LONG


def check(config: ConfigDict, prompt: Prompt) -> None:
    """Raises UsageError if the prompt is wrong, or attempts would all be the same."""
    c = config.stitch
    if c.attempts > 1 and not c.temperature:
        raise UsageError(
            f"config.stitch.attempts={c.attempts} with config.stitch.temperature=0 would draw the "
            "same again: set one of them higher or attempts to 1"
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
) -> list[Trace]:
    """Makes a trace of every case; what the ledger answers is not asked again.

    Args:
      ledger: takes every reply.
      config: section stitch and the seed are read.
      cases: all that training reads; their diagnoses are the names that the audit knows.
      generator: who writes.
      model: its name in the ledger.
      prompt: takes `statements`, one numbered line each.
      status: tells how the generator does, for the progress line.
      judge: judges the traces; None where nothing is judged.

    Returns:
      One per case, in the order of `cases`.

    Raises:
      UsageError: the prompt is wrong, or attempts would all be the same.
      McrError: some replies or verdicts could not be had at all; nothing is made of the others.
    """
    check(config, prompt)
    c = config.stitch
    auditor = Auditor(cases, Limits(shortest=c.shortest, longest=c.longest))
    samples: dict[str, list[_Sample]] = {case.fingerprint: [] for case in cases}
    for drawn in range(1, c.attempts + 1):
        again = [case for case in cases if not any(s.final for s in samples[case.fingerprint])]
        if not again:
            break
        # Those that are done stay wanted: a declaration replaces what was declared before.
        wanted = {f: len(found) for f, found in samples.items()}
        wanted |= {case.fingerprint: drawn for case in again}
        jobs = [_job(case, wanted[case.fingerprint], config, model, prompt) for case in cases]
        answers = _answers(jobs, generator, ledger, model, drawn, status)
        with console.track("audit", len(again)) as progress:
            for case in again:
                row = RowKey(stage=STAGE, case=case.fingerprint, model=model, sample=drawn - 1)
                samples[case.fingerprint].append(_sample(case, answers[row], auditor))
                progress.advance()
        if judge is not None:
            _judge(judge, again, samples, drawn - 1)
    return [_trace(case, samples[case.fingerprint], auditor, model, prompt) for case in cases]


def _judge(
    judge: Meaning, cases: Sequence[Case], samples: dict[str, list[_Sample]], drawn: int
) -> None:
    """Adds to the newest samples of `cases`, which have the index `drawn`, what the judge finds."""
    newest = [(case, samples[case.fingerprint]) for case in cases]
    asked = [(c, made) for c, made in newest if made[-1].trace and not (drawn and made[-1].faults)]
    judge.judge((case, drawn, made[-1].trace) for case, made in asked)
    for case, made in asked:
        row = judge.row(case, drawn)
        found = {"distortions": judge.faults(row), "coverage": judge.coverage(row)}
        made[-1] = dataclasses.replace(made[-1], **found)


def _job(case: Case, wanted: int, config: ConfigDict, model: str, prompt: Prompt) -> driver.Job:
    c = config.stitch
    lines = number_statements([" ".join(statement.split()) for statement in case.statements])
    request = Request(
        key=case.fingerprint,
        messages=({"role": "user", "content": prompt.render(statements=inert(lines))},),
        n=c.attempts,
        temperature=c.temperature,
        top_p=c.top_p,
        max_tokens=c.max_tokens + (_THOUGHTS if c.model == "gemini" else 0),
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
) -> Mapping[RowKey, Attempt]:
    """Every wanted row's newest attempt. Raises McrError if one has none that settles it."""
    scope = Scope(STAGE, model)
    work = driver.declare(scope, jobs, generator, ledger)
    label = f"stitch, sample {drawn} of a case" if drawn > 1 else "stitch"
    with console.track(label, work.total, work.held, status) as progress:
        summary = driver.answer(work, generator, ledger, progress=progress.advance)
    answers = ledger.answers(scope)
    left = [row for row, a in answers.items() if a is None or not a.outcome.settled]
    if left:
        why = f" ({summary.errors[0]})" if summary.errors else ""
        raise McrError(
            f"{len(left)} of {work.total} traces could not be had{why}; the others are kept: run "
            "`mcr stitch` again to go on"
        )
    return answers


def _sample(case: Case, attempt: Attempt, auditor: Auditor) -> _Sample:
    if attempt.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return _Sample(attempt, "", None)
    trace = trace_of(attempt.text)
    if not trace and attempt.outcome is Outcome.TRUNCATED:  # all of it thoughts
        return _Sample(attempt, "", None)
    return _Sample(attempt, trace, auditor.audit(case, trace))


def _trace(
    case: Case, samples: Sequence[_Sample], auditor: Auditor, model: str, prompt: Prompt
) -> Trace:
    first, last = samples[0], samples[-1]
    good = not last.faults
    trace = last.trace if good else joined(case)
    kept = last.audit if good else auditor.audit(case, trace)
    return Trace(
        fingerprint=case.fingerprint,
        split=case.split,
        trace=trace,
        source=STITCHED if good else JOINED,
        model=model,
        model_version=last.attempt.model_version,
        prompt=prompt.digest,
        attempts=len(samples),
        outcomes=tuple(sample.attempt.outcome.value for sample in samples),
        faults_first=first.faults,
        faults=last.faults,
        coverage_first=first.coverage,
        coverage=last.coverage if good else 1.0,
        additions_first=first.audit.added if first.audit else (),
        additions=kept.added,
        length_first=first.audit.length if first.audit else None,
        length=kept.length,
    )
