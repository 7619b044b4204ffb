"""Judging: completions in the ledger get verdicts in the ledger.

Each completion with exactly one answer goes to the diagnosis judge; the first traces of each case
go to the reasons judge. Rows are joined by case fingerprint, model and sample. Each run of `mcr
judge` requests the missing and the failed verdicts (truncated, blocked, malformed); equal questions
share one request.

A service may change the model behind a name, so each verdict keeps its reported model_version.
`config.judge.version` names the one that counts. Verdicts of other versions then count as missing,
and each run of `mcr judge` requests them once. The old ones stay in the ledger and count again if
the setting names their version or is empty.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import console, model_specs, prompts
from mcr_jax.cases import Case
from mcr_jax.completion import Completion
from mcr_jax.config import judge_name
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate import driver, joined
from mcr_jax.generate.api import Generator, Outcome, Remote
from mcr_jax.generate.batch_wire import Batched
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, opened
from mcr_jax.generate.questions import is_open
from mcr_jax.generate.room import require_room
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.judges.choose import JUDGES, make_judge, reader, readings
from mcr_jax.workdir import Workdir

_VERDICT_TOKENS = 250  # of a verdict with its quotes, about
_COUNTS = ("total", "asked", "settled", "unresolved")

Answered = tuple[Case, RowKey, Completion]  # a case and a model's completion for it


def check(workdir: Workdir, config: ConfigDict) -> None:
    """Checks judge, key, prompts and version as `judge` does. Raises UsageError."""
    make_judge(config)
    _texts(config)
    if workdir.ledger.exists():
        with opened(workdir) as ledger:
            _check_version(ledger, judge_name(config), config)


def judge(
    workdir: Workdir,
    config: ConfigDict,
    cases: Sequence[Case],
    *,
    generator: Generator | Remote | None = None,
) -> dict[str, Any]:
    """Judges the completions of every model in `config.sample.models`.

    Args:
      workdir: its ledger holds the completions and receives the verdicts; its manifest receives
        the judge's name, identity and prompt digests.
      config: a resolved config; reads `sample.models`, `judge` and `prompts`.
      cases: the cases to judge; completions of others are ignored.
      generator: replaces the configured judge; verdicts keep the configured name.

    Returns:
      Counts of verdicts, {"judge": NAME, "total", "asked", "settled", "unresolved", "versions":
      {model_version: verdicts}, "models": {MODEL: {"diagnosis": {the four counts}, "reasons": {the
      four counts}}}}. `asked`: rows open at the start; 0 if nothing was left to do. `settled`:
      those closed since. `unresolved`: rows without a verdict.

    Raises:
      McrError: a model has no completions, no verdict came at all, or ledger or judge fail.
      UsageError: the config or a prompt is wrong.
      Stopped: SIGTERM came, or the judge's daily quota is used up.
    """
    if not workdir.ledger.exists():
        raise McrError(f"{workdir.ledger}: no completions yet; run `mcr sample` first")
    texts = _texts(config)
    name, models, answers = (
        judge_name(config),
        {model: {} for model in model_specs.names(config)},
        [],
    )
    with opened(workdir) as ledger:
        completions = {
            model: list(_completions(ledger, model, cases, config))
            for model in model_specs.names(config)
        }
        generator = generator or make_judge(config)
        if config.judge.batch and isinstance(generator, Remote):
            generator = Batched(generator, config.judge.patience)
        _check_version(ledger, name, config)
        wanted = {
            Scope(stage, model, name): _JOBS[stage](rows, name, texts, config)
            for model, rows in completions.items()
            for stage in JUDGES
        }
        remedy, count = "use another --workdir", sum(map(len, wanted.values()))
        require_room(workdir, wanted, count, _VERDICT_TOKENS, remedy)
        for scope, jobs in wanted.items():
            driver.want(scope, jobs, generator, ledger)
        workdir.note("judge", _facts(name, generator, texts, config))
        if isinstance(generator, Batched):
            for scope, jobs in wanted.items():
                driver.submit(_declared(scope, jobs, generator, ledger, config), generator, ledger)
        for scope, jobs in wanted.items():
            models[scope.model][scope.stage] = _run(scope, jobs, generator, ledger, config)
            answers += ledger.answers(scope, config.judge.version).values()
    parts = [part for stages in models.values() for part in stages.values()]
    counts = {count: sum(part[count] for part in parts) for count in _COUNTS}
    if counts["total"] and counts["unresolved"] == counts["total"]:
        raise McrError(
            f"not one of {counts['total']} verdicts could be had from {name}: {_causes(answers)}"
        )
    versions = _versions(answers)
    _say_about_the_service(name, answers, versions, config)
    return {"judge": name, **counts, "versions": versions, "models": models}


def too_few(counts: Mapping[str, Any], config: ConfigDict) -> str:
    """Returns a line if more verdicts are missing than `judge.unresolved_limit` allows, else "".

    Args:
      counts: as `judge` returns them.
      config: reads `judge`.
    """
    limit, missing, total = config.judge.unresolved_limit, counts["unresolved"], counts["total"]
    if not total or missing / total <= limit:
        return ""
    return (
        f"{missing} of {total} verdicts are missing, more than config.judge.unresolved_limit="
        f"{limit:g} allows; those that came are kept: run `mcr judge` again to ask for the others"
    )


def _texts(config: ConfigDict) -> dict[str, prompts.Prompt]:
    """Loads the prompt of each stage of judging."""
    return {stage: prompts.load(JUDGES[stage].PROMPT, config.prompts) for stage in JUDGES}


def _check_version(ledger: Ledger, name: str, config: ConfigDict) -> None:
    """Raises UsageError if there are verdicts and none is of config.judge.version."""
    wanted = config.judge.version
    if not wanted:
        return
    scopes = [Scope(stage, model, name) for model in model_specs.names(config) for stage in JUDGES]
    seen = _versions(a for scope in scopes for a in ledger.answers(scope, wanted).values())
    if seen and wanted not in seen:
        raise UsageError(
            f"config.judge.version={wanted!r} gave none of the verdicts of {name}, but "
            f"{_listed(seen)} did: name one of these, or '' for any"
        )


def _facts(
    name: str,
    generator: Generator | Remote,
    texts: Mapping[str, prompts.Prompt],
    config: ConfigDict,
) -> dict[str, Any]:
    """Returns the judge's facts for the manifest."""
    return {
        "name": name,
        "identity": generator.identity,
        "max_tokens": config.judge.max_tokens,
        "prompts": {prompt.name: prompt.digest for prompt in texts.values()},
        "readings": readings(config),
    }


def _versions(answers: Iterable[Attempt | None]) -> dict[str, int]:
    versions = (a.model_version for a in answers if a and a.outcome is Outcome.OK)
    return dict(collections.Counter(versions).most_common())


def _listed(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{version or 'no name'} ({n})" for version, n in versions.items())


def _say_about_the_service(
    name: str, answers: Iterable[Attempt | None], versions: Mapping[str, int], config: ConfigDict
) -> None:
    """Prints several model versions, if there are, and the service's notices on the model."""
    if len(versions) > 1 and not config.judge.version:
        console.say(
            f"judge: the verdicts of {name} are from {len(versions)} model versions, "
            f"{_listed(versions)}: results.json pools none until config.judge.version names one"
        )
    for status in sorted({a.model_status for a in answers if a and a.model_status}):
        console.say(f"judge: the service says of {name}: {status}")


def _completions(
    ledger: Ledger, model: str, cases: Sequence[Case], config: ConfigDict
) -> Iterator[Answered]:
    """Yields the completions of `model` that have text, for these cases, by case and sample."""
    attempts = ledger.answers(Scope("sample", model))
    if not any(attempts.values()):
        raise McrError(f"{ledger.path}: no completions of {model} yet; run `mcr sample` first")
    known = {case.fingerprint: case for case in cases}
    for row, attempt in attempts.items():
        said = joined.read_once(ledger, attempt, config.score.answer) if row.case in known else None
        if said is not None:
            yield known[row.case], row, said


def _diagnosis_jobs(
    rows: Sequence[Answered], judge: str, texts: Mapping[str, prompts.Prompt], config: ConfigDict
) -> list[driver.Job]:
    limit, prompt = config.judge.max_tokens, texts["diagnosis"]
    return [
        driver.Job(
            row=(place := row.judged("diagnosis", judge)),
            request=diagnosis.request(_key(place), case, said.answer, prompt, max_tokens=limit),
        )
        for case, row, said in rows
        if said.answer is not None
    ]


def _reasons_jobs(
    rows: Sequence[Answered], judge: str, texts: Mapping[str, prompts.Prompt], config: ConfigDict
) -> list[driver.Job]:
    c, prompt = config.judge, texts["reasons"]
    settings = {"quote_words": c.quote_words, "max_tokens": c.max_tokens}
    return [
        driver.Job(
            row=(place := row.judged("reasons", judge)),
            request=reasons.request(_key(place), case, said.trace, prompt, **settings),
        )
        for case, row, said in rows
        if said.trace and row.sample < c.recall_samples
    ]


_JOBS = {"diagnosis": _diagnosis_jobs, "reasons": _reasons_jobs}


def _key(row: RowKey) -> str:
    return f"{row.case}/{row.model}/{row.sample}/{row.stage}"


def _declared(
    scope: Scope,
    jobs: Sequence[driver.Job],
    generator: Generator | Remote,
    ledger: Ledger,
    config: ConfigDict,
) -> driver.Work:
    read_by, attempts = reader(scope.stage, config), config.judge.attempts
    return driver.declare(scope, jobs, generator, ledger, attempts=attempts, reader=read_by)


def _run(
    scope: Scope,
    jobs: Sequence[driver.Job],
    generator: Generator | Remote,
    ledger: Ledger,
    config: ConfigDict,
) -> dict[str, int]:
    """Requests the open verdicts of one scope; prints those still missing; returns its counts."""
    read_by, attempts = reader(scope.stage, config), config.judge.attempts
    work = _declared(scope, jobs, generator, ledger, config)
    label = f"{scope.stage} of {scope.model}"
    with console.track(label, work.total, work.held, driver.status_of(generator)) as track:
        summary = driver.answer(work, generator, ledger, progress=track.advance)
    answers = ledger.answers(scope, read_by.version).values()
    left = [a for a in answers if is_open(a, read_by, attempts) or a.outcome is not Outcome.OK]
    if left:
        console.say(
            f"  {label}: {len(left)} of {summary.total} without a verdict ({_causes(left)}); "
            "`mcr judge` asks for them again"
        )
    return dict(
        zip(_COUNTS, (summary.total, summary.asked, summary.settled, len(left)), strict=True)
    )


def _causes(left: Iterable[Attempt | None]) -> str:
    """Counts the causes of missing verdicts, with one error as an example."""
    left = list(left)
    causes = collections.Counter(
        "no reply" if a is None else a.outcome.value if a.verdict is None else "another version"
        for a in left
    )
    line = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    errors = [a.error for a in left if a and a.error]
    return f"{line}; such as: {errors[0]}" if errors else line
