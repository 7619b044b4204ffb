"""The judging stage: completions in the ledger to verdicts in the ledger.

Each completion with exactly one answer goes to the diagnosis judge; the first traces of each case
go to the reasons judge. Rows are joined by case fingerprint, model and sample. A verdict that is
there is not asked for again.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import completion, console, prompts
from mcr_jax.cases import Case
from mcr_jax.config import judge_name
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Generator, Outcome, Request
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.workdir import Workdir

_PARSE: Mapping[str, Callable[[Request, str], Any]] = {
    "diagnosis": diagnosis.parse,
    "reasons": reasons.parse,
}
_COUNTS = ("total", "asked", "settled", "unresolved")

Told = tuple[Case, RowKey, completion.Completion]  # a case and what a model said about it


def make_judge(config: ConfigDict) -> Generator:
    """The generator that `config.judge` names. Raises UsageError if there is none of that name."""
    section = config.judge
    if section.name == "offline":
        from mcr_jax.judges.offline import OfflineJudge

        return OfflineJudge()
    if section.name == "gemini":
        from mcr_jax.generate.gemini import Gemini

        return Gemini(section.model, timeout=section.timeout, concurrency=section.concurrency)
    raise UsageError(f"config field judge.name is {section.name!r}: set it to offline or gemini")


def judge(
    workdir: Workdir,
    config: ConfigDict,
    cases: Sequence[Case],
    *,
    generator: Generator | None = None,
) -> dict[str, Any]:
    """Judges the completions of every model in `config.sample.models`.

    Args:
      workdir: its ledger has the completions and takes the verdicts; its manifest takes the judge's
        name, identity and prompt digests.
      config: a resolved config; `sample.models`, `judge` and `prompts` are read.
      cases: the cases to judge; completions of others are left alone.
      generator: answers instead of the one that `config.judge` names, under the same name.

    Returns:
      Counts of verdicts, {"judge": NAME, "total", "asked", "settled", "unresolved", "models":
      {MODEL: {"diagnosis": {the four counts}, "reasons": {the four counts}}}}. `asked` were open
      when the call began, `settled` of those are not any more; `unresolved` have no verdict, for
      whatever cause. A call that finds all done has `asked` 0.

    Raises:
      McrError: a model has no completions, there is no verdict at all, or ledger or judge fail.
      UsageError: the config or a prompt is wrong.
    """
    if not workdir.ledger.exists():
        raise McrError(f"{workdir.ledger}: no completions yet; run `mcr sample` first")
    texts = {
        name: prompts.load(name, config.prompts) for name in (diagnosis.PROMPT, reasons.PROMPT)
    }
    name, models, troubles = judge_name(config), {}, []
    with Ledger(workdir.ledger) as ledger:
        told = {model: list(_told(ledger, model, cases, config)) for model in config.sample.models}
        generator = generator or make_judge(config)
        digests = {prompt.name: prompt.digest for prompt in texts.values()}
        workdir.note("judge", {"name": name, "identity": generator.identity, "prompts": digests})
        for model, rows in told.items():
            jobs = {
                "diagnosis": _diagnosis_jobs(rows, name, texts[diagnosis.PROMPT]),
                "reasons": _reasons_jobs(rows, name, texts[reasons.PROMPT], config),
            }
            models[model] = {}
            for stage in jobs:
                scope = Scope(stage, model, name)
                models[model][stage], trouble = _run(scope, jobs[stage], generator, ledger, config)
                if trouble:
                    troubles.append(trouble)
                    console.say(f"  {stage} of {model}: {trouble}")
    parts = [part for stages in models.values() for part in stages.values()]
    counts = {count: sum(part[count] for part in parts) for count in _COUNTS}
    if counts["total"] and counts["unresolved"] == counts["total"]:
        raise McrError(
            f"not one of {counts['total']} verdicts could be had from {name}: {troubles[0]}"
        )
    return {"judge": name, **counts, "models": models}


def _told(ledger: Ledger, model: str, cases: Sequence[Case], config: ConfigDict) -> Iterator[Told]:
    """The completions of `model` that have text, for the cases given, by case and sample."""
    attempts = ledger.answers(Scope("sample", model))
    if not any(attempts.values()):
        raise McrError(f"{ledger.path}: no completions of {model} yet; run `mcr sample` first")
    known = {case.fingerprint: case for case in cases}
    for row, attempt in attempts.items():
        if row.case in known and attempt and attempt.outcome in (Outcome.OK, Outcome.TRUNCATED):
            ended = attempt.outcome is Outcome.OK
            said = completion.parse(attempt.text, config.score.answer, ended=ended)
            yield known[row.case], row, said


def _diagnosis_jobs(rows: Sequence[Told], judge: str, prompt: prompts.Prompt) -> list[driver.Job]:
    return [
        driver.Job(
            row=(place := row.judged("diagnosis", judge)),
            request=diagnosis.request(_key(place), case, said.answer, prompt),
        )
        for case, row, said in rows
        if said.answer is not None
    ]


def _reasons_jobs(
    rows: Sequence[Told], judge: str, prompt: prompts.Prompt, config: ConfigDict
) -> list[driver.Job]:
    words, samples = config.judge.quote_words, config.judge.recall_samples
    return [
        driver.Job(
            row=(place := row.judged("reasons", judge)),
            request=reasons.request(_key(place), case, said.trace, prompt, quote_words=words),
        )
        for case, row, said in rows
        if said.trace and row.sample < samples
    ]


def _key(row: RowKey) -> str:
    return f"{row.case}/{row.model}/{row.sample}/{row.stage}"


def _run(
    scope: Scope,
    jobs: Sequence[driver.Job],
    generator: Generator,
    ledger: Ledger,
    config: ConfigDict,
) -> tuple[dict[str, int], str]:
    """Answers one scope; returns its counts and, if rows have no verdict, a line about them."""
    retry = driver.Retry(attempts=config.judge.attempts)
    work = driver.declare(scope, jobs, generator, ledger, retry)
    label, parse = f"{scope.stage} of {scope.model}", _PARSE[scope.stage]
    with console.track(label, work.total, work.held) as track:
        summary = driver.answer(work, generator, ledger, parse=parse, progress=track.advance)
    left = [a for a in ledger.answers(scope).values() if a is None or a.verdict is None]
    counts = (summary.total, summary.asked, summary.settled, len(left))
    return dict(zip(_COUNTS, counts, strict=True)), _why(left, summary) if left else ""


def _why(left: Sequence[Attempt | None], summary: driver.Summary) -> str:
    """One line: how many rows have no verdict, for what causes, and whether going on may help."""
    causes = collections.Counter(a.outcome.value if a else "no reply" for a in left)
    line = f"{len(left)} of {summary.total} without a verdict (" + ", ".join(
        f"{count} {cause}" for cause, count in causes.most_common()
    )
    errors = summary.errors or tuple(a.error for a in left if a and a.error)
    line += f"; such as: {errors[0]})" if errors else ")"
    again = summary.settled < summary.asked
    return line + ("; run `mcr judge` again to go on" if again else "")
