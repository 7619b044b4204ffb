"""Judging: completions in the ledger get verdicts in the ledger.

Each completion with exactly one answer goes to the diagnosis judge; the first traces of each case
go to the reasons judge. Rows are joined by case fingerprint, model and sample. Each run of `mcr
judge` requests the missing and the failed verdicts (truncated, blocked, malformed); equal questions
share one request. With config.judge.models several judges do so, one after another, each in rows of
its own; config.judge.repeat asks each of them again, with another seed.

A service may change the model behind a name, so each verdict keeps its reported model_version.
`config.judge.version` names the one of the first judge that counts. Verdicts of other versions then
count as missing, and each run of `mcr judge` requests them once. The old ones stay in the ledger
and count again if the setting names their version or is empty.
"""

import collections
import dataclasses
import datetime
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mcr_jax import console, judge_specs, model_specs, prompts
from mcr_jax.cases import Case
from mcr_jax.completion import Completion
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.generate import driver, forecast, free_question, joined, notices
from mcr_jax.generate.api import Generator, Outcome, Remote, Request
from mcr_jax.generate.batch_wire import Batched
from mcr_jax.generate.budget import Budget, Payments, refuse_batches, require_price
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope, opened
from mcr_jax.generate.questions import is_open
from mcr_jax.generate.room import require_room
from mcr_jax.judge import manifest
from mcr_jax.judge_specs import Judge
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.judges.choose import JUDGES, make_judges, reader
from mcr_jax.model_specs import OFFLINE, ModelSpec
from mcr_jax.workdir import Workdir

_VERDICT_TOKENS = 250  # of a verdict with its quotes, about
_COUNTS = ("total", "asked", "settled", "unresolved")

Answered = tuple[Case, RowKey, Completion]  # a case and a model's completion for it
Generators = Mapping[str, Generator | Remote]  # of a judge, by stage


def check(workdir: Workdir, config: ConfigDict) -> None:
    """Checks judges, keys, prices, prompts and version as `judge` does. Raises UsageError."""
    judges = make_judges(config)
    if config.judge.batch:
        _batched(judges, config)  # refuses a service without batches
    refuse_batches(config, "judge")
    for each in judge_specs.judges(config):
        for spec in each.models.values():
            require_price(config, _service(spec))
    _texts(config)
    if workdir.ledger.exists():
        with opened(workdir) as ledger:
            _check_version(ledger, judge_specs.headline(config), config)


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
        the judges' names, identities, retirement notices and prompt digests.
      config: a resolved config; reads `sample.models`, `judge` and `prompts`.
      cases: the cases to judge; completions of others are ignored.
      generator: replaces all models of the judges; verdicts keep the configured names.

    Returns:
      Counts of the first judge's verdicts, {"judge": NAME, "total", "asked", "settled",
      "unresolved", "versions": {model_version: verdicts}, "models": {MODEL: {"diagnosis": {the four
      counts}, "reasons": {the four counts}}}}, and "further": the same of each further judge.
      `asked`: rows open at the start; 0 if nothing was left to do. `settled`: those closed since.
      `unresolved`: rows without a verdict. Of a service also "calls" that gave verdicts,
      "calls_now", those of this run, and "equal", verdicts that repeat the reply of another row.

    Raises:
      McrError: a model has no completions, no verdict came at all, or ledger or judge fail.
      UsageError: the config or a prompt is wrong.
      Stopped: SIGTERM came, a judge's daily quota is used up, or config.budget is spent.
    """
    if not workdir.ledger.exists():
        raise McrError(f"{workdir.ledger}: no completions yet; run `mcr sample` first")
    texts, judges = _texts(config), judge_specs.judges(config)
    refuse_batches(config, "judge")
    with opened(workdir) as ledger:
        completions = {
            model: list(_completions(ledger, model, cases, config))
            for model in model_specs.names(config)
        }
        if generator is None:
            generators = make_judges(config)
        else:
            generators = {each.name: dict.fromkeys(JUDGES, generator) for each in judges}
        if config.judge.batch:
            generators = _batched(generators, config)
        _check_version(ledger, judges[0], config)
        wanted = {
            each.name: {
                Scope(stage, model, each.name): _JOBS[stage](rows, each.name, texts, config)
                for model, rows in completions.items()
                for stage in JUDGES
            }
            for each in judges
        }
        scopes = {scope: jobs for of_judge in wanted.values() for scope, jobs in of_judge.items()}
        remedy, count = "use another --workdir", sum(map(len, scopes.values()))
        require_room(workdir, scopes, count, _VERDICT_TOKENS, remedy)
        works = {  # of all judges before any is asked
            each.name: {
                scope: _declare(scope, jobs, generators[each.name], ledger, each, config)
                for scope, jobs in wanted[each.name].items()
            }
            for each in judges
        }
        pending = [scope for of in works.values() for scope, work in of.items() if work.pending]
        for line in free_question.ask(generators[of.judge][of.stage] for of in pending):
            console.say(f"judge: {line}")
        counts, budget = [], Budget(config, ledger)
        for each in judges:
            of_judge = works[each.name], generators[each.name], texts
            counts.append(_judge(each, *of_judge, budget, workdir, ledger, config))
    return {**counts[0], "further": counts[1:]}


def _batched(
    generators: Mapping[str, Generators], config: ConfigDict
) -> dict[str, dict[str, Generator | Remote]]:
    """Wraps services so that they answer in batches; models that are one object stay one."""
    one = {id(each): each for of_judge in generators.values() for each in of_judge.values()}
    wrapped = {
        key: Batched(each, config.judge.patience) if isinstance(each, Remote) else each
        for key, each in one.items()
    }
    return {
        name: {stage: wrapped[id(each)] for stage, each in of_judge.items()}
        for name, of_judge in generators.items()
    }


def _service(spec: ModelSpec) -> str:
    """Returns "KIND:MODEL" of the service that is paid; "" for none."""
    return "" if spec.kind == OFFLINE else f"{spec.kind}:{spec.value}"


def _judge(
    judge: Judge,
    works: Mapping[Scope, driver.Work],
    generators: Generators,
    texts: Mapping[str, prompts.Prompt],
    budget: Budget,
    workdir: Workdir,
    ledger: Ledger,
    config: ConfigDict,
) -> dict[str, Any]:
    """Requests the open verdicts of one judge; returns its counts, see `judge`."""

    def still_open(scope: Scope, work: driver.Work) -> driver.Work:
        return driver.still_open(work, generators[scope.stage], ledger)

    works = {scope: still_open(scope, work) for scope, work in works.items()}  # after other judges
    facts, answers = manifest.facts(judge, generators, texts, config), []
    models: dict[str, dict[str, dict[str, int]]] = {scope.model: {} for scope in works}
    manifest.note(workdir, judge, {**facts, **manifest.noted_status(workdir, facts)}, config)
    payments: dict[str, Payments | None] = dict.fromkeys(JUDGES)
    for stages in judge.parts:
        service, generator = _service(judge.models[stages[0]]), generators[stages[0]]
        if isinstance(generator, Remote) and service:
            tier = "batch" if isinstance(generator, Batched) else ""
            paid = budget.of(service, tier)
            payments |= dict.fromkeys(stages, paid)
            of_part = [work.pending for scope, work in works.items() if scope.stage in stages]
            if line := forecast.line(itertools.chain(*of_part), paid, ledger):
                console.say(f"judge: {line}")
    for scope, work in works.items():  # the services work on all batches at once
        driver.submit(work, generators[scope.stage], ledger)
    in_batch, ((last,),) = 0, ledger.select("SELECT max(id) FROM attempts")
    for scope, work in works.items():
        work = still_open(scope, work)  # after other scopes
        by, paid = generators[scope.stage], payments[scope.stage]
        models[scope.model][scope.stage], found, rows = _run(work, by, ledger, config, paid)
        answers, in_batch = answers + found, in_batch + rows
    made = [attempt for attempt in answers if attempt]
    manifest.note(workdir, judge, {**facts, **manifest.status(judge, made)}, config)
    parts = [part for stages in models.values() for part in stages.values()]
    counts = {count: sum(part[count] for part in parts) for count in _COUNTS}
    if in_batch:
        raise Stopped(
            f"{in_batch} verdicts of {judge.name} are in an open batch at the service: "
            "--config.judge.batch=True fetches them"
        )
    if counts["total"] and counts["unresolved"] == counts["total"]:
        raise McrError(
            f"not one of {counts['total']} verdicts could be had from {judge.name}: "
            f"{_causes(answers)}"
        )
    versions = _versions(answers)
    _say_about_the_service(judge, made)
    if any(map(_service, judge.models.values())):
        good = [attempt for attempt in made if attempt.outcome is Outcome.OK]
        calls = [attempt.id for attempt in good if attempt.shared is None]
        now = sum(id > (last or 0) for id in calls)
        counts |= {"calls": len(calls), "calls_now": now, "equal": len(good) - len(calls)}
    return {"judge": judge.name, **counts, "versions": versions, "models": models}


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


def _check_version(ledger: Ledger, judge: Judge, config: ConfigDict) -> None:
    """Raises UsageError if there are verdicts and none is of config.judge.version."""
    models = model_specs.names(config)
    for stages in judge.parts:
        if not (wanted := judge.versions[stages[0]]):
            continue
        scopes = [Scope(stage, model, judge.name) for model in models for stage in stages]
        seen = _versions(a for scope in scopes for a in ledger.answers(scope, wanted).values())
        if seen and wanted not in seen:
            raise UsageError(
                f"config.judge.version={wanted!r} gave none of the verdicts of {judge.name}, but "
                f"{_listed(seen)} did: name one of these, or '' for any"
            )


def _versions(answers: Iterable[Attempt | None]) -> dict[str, int]:
    versions = (a.model_version for a in answers if a and a.outcome is Outcome.OK)
    return dict(collections.Counter(versions).most_common())


def _listed(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{version or 'no name'} ({n})" for version, n in versions.items())


def _say_about_the_service(judge: Judge, answers: Sequence[Attempt]) -> None:
    """Prints several model versions, if there are, and the service's notices on the models."""
    for stages in judge.parts:
        of_model = [a for a in answers if a.row.stage in stages]
        model, versions = judge.models[stages[0]], _versions(of_model)
        name = f"{judge.name} ({model.name})" if judge.is_pair else judge.name
        if len(versions) > 1 and not judge.versions[stages[0]]:
            console.say(
                f"judge: the verdicts of {name} are from {len(versions)} model versions, "
                f"{_listed(versions)}: results.json pools none until config.judge.version names one"
            )
        reported = {(a.model_version, a.model_status) for a in of_model}
        for line in notices.lines(name, model.value, reported, datetime.date.today()):
            console.say(f"judge: {line}")


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
        _job(
            place := row.judged("diagnosis", judge, repeat),
            diagnosis.request(_key(place), case, said.answer, prompt, max_tokens=limit),
        )
        for case, row, said in rows
        if said.answer is not None
        for repeat in range(config.judge.repeat)
    ]


def _reasons_jobs(
    rows: Sequence[Answered], judge: str, texts: Mapping[str, prompts.Prompt], config: ConfigDict
) -> list[driver.Job]:
    c, prompt = config.judge, texts["reasons"]
    settings = {"quote_words": c.quote_words, "max_tokens": c.max_tokens}
    return [
        _job(
            place := row.judged("reasons", judge, repeat),
            reasons.request(_key(place), case, said.trace, prompt, **settings),
        )
        for case, row, said in rows
        if said.trace and row.sample < c.recall_samples
        for repeat in range(c.repeat)
    ]


def _job(row: RowKey, request: Request) -> driver.Job:
    """Returns the job of a verdict; each repeat has a seed of its own."""
    if row.repeat:
        request = dataclasses.replace(request, seed=row.repeat)
    return driver.Job(row=row, request=request)


_JOBS = {"diagnosis": _diagnosis_jobs, "reasons": _reasons_jobs}


def _key(row: RowKey) -> str:
    """Returns the key of a request; that of the first repeat is as without repeats."""
    return f"{row.case}/{row.model}/{row.sample}/{row.stage}" + f"/{row.repeat}" * bool(row.repeat)


def _declare(
    scope: Scope,
    jobs: Sequence[driver.Job],
    generators: Generators,
    ledger: Ledger,
    judge: Judge,
    config: ConfigDict,
) -> driver.Work:
    read_by = reader(scope.stage, config, judge.versions[scope.stage])
    settings = {"attempts": config.judge.attempts, "reader": read_by}
    return driver.declare(scope, jobs, generators[scope.stage], ledger, **settings)


def _run(
    work: driver.Work,
    generator: Generator | Remote,
    ledger: Ledger,
    config: ConfigDict,
    payments: Payments | None,
) -> tuple[dict[str, int], list[Attempt | None], int]:
    """Requests the open verdicts of one scope; prints those still missing.

    Returns its counts, the attempt that counts for each of its rows, and the number of its rows in
    an open batch that this run does not wait for.
    """
    scope, read_by, attempts = work.scope, work.reader, work.attempts
    label = f"{scope.stage} of {scope.model}"
    if len(config.judge.models) > 1:
        label += f" by {scope.judge}"
    with console.track(label, work.total, work.held, driver.status_of(generator)) as track:
        advance = track.advance
        summary = driver.answer(work, generator, ledger, progress=advance, payments=payments)
    answers = list(ledger.answers(scope, read_by.version).values())
    left = [a for a in answers if is_open(a, read_by, attempts) or a.outcome is not Outcome.OK]
    if left and not summary.in_batch:
        console.say(
            f"  {label}: {len(left)} of {summary.total} without a verdict ({_causes(left)}); "
            "`mcr judge` asks for them again"
        )
    counts = summary.total, summary.asked, summary.settled, len(left)
    return dict(zip(_COUNTS, counts, strict=True)), answers, summary.in_batch


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
