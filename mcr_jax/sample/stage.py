"""The sampling stage: N completions of every case from every model of config.sample.models."""

import functools
import json
from collections.abc import Callable

from mcr_jax import artifacts, console, model_specs
from mcr_jax.errors import Stopped
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.generate import driver, forecast, free_question
from mcr_jax.generate.api import Request
from mcr_jax.generate.budget import Budget, Payments, refuse_batches, require_price
from mcr_jax.generate.ledger import Ledger, opened
from mcr_jax.sample import draw
from mcr_jax.sample.candidates import Candidate, Decoder, candidates
from mcr_jax.sigterm import stoppable


def ready(experiment: Experiment) -> None:
    """Raises UsageError if config.sample names an unknown model, or config.prices is wrong."""
    model_specs.specs(experiment.config)
    refuse_batches(experiment.config, "sample")
    require_price(experiment.config)


def run(experiment: Experiment, before: Callable[[], None] = lambda: None) -> None:
    """Samples the missing completions; loads only models with missing completions.

    Args:
      experiment: names the models.
      before: called before the first completion, if any is missing; may raise to prevent it.

    Raises:
      McrError: a service refuses its key or does not have its model, or sampling fails.
      Stopped: SIGTERM came, config.budget is spent, or completions are in an open batch and
        config.sample.batch is off; every completion that was finished is in the ledger.
    """
    ready(experiment)
    left = []
    for candidate in candidates(experiment):
        count = candidate.complete()
        if count is None:
            left.append(candidate)
        else:
            console.say(f"sample: {candidate.spec.name}: {count} completions, nothing to do")
    if left:
        with stoppable(
            "stopped by SIGTERM; every finished completion is kept, call again to go on"
        ):
            _draw(experiment, left, before)


def _new_lines(candidate: Candidate, printed: set[str]) -> list[str]:
    """Returns the lines of a candidate that no candidate before it had: plans are often equal."""
    lines = [line for line in candidate.lines() if line not in printed]
    printed.update(lines)
    return lines


def _draw(e: Experiment, left: list[Candidate], before: Callable[[], None]) -> None:
    if any(candidate.spec.own for candidate in left):
        e.refuse_other(e.origin())
    e.eval_cases()  # raises if the split is missing or empty
    for candidate in left:  # all of them before the first is sampled
        candidate.ready()
    draw.require_room(e, [candidate.spec.name for candidate in left])
    for line in free_question.ask(c.load()[0] for c in left if c.service):
        console.say(f"sample: {line}")
    before()
    requests, drawn, printed = draw.requests(e), {}, set()
    with opened(e.workdir) as ledger:
        works, paid = _forecast(e, left, requests, ledger)
        for candidate in left:  # the services work while the others sample
            if work := works.get(candidate.spec.name):
                driver.submit(work, candidate.load()[0], ledger)
        for candidate in left:
            name = candidate.spec.name
            model, facts = candidate.load()
            e.workdir.note(f"sample.{name}", facts)
            lines = functools.partial(_new_lines, candidate, printed)
            if (work := works.get(name)) is None:
                work = draw.declare(name, model, requests, ledger)
                _say_of_replaced(e, name, ledger)
            drawn[name] = draw.draw(work, model, ledger, lines, paid.get(name))
            for line in candidate.notices(ledger):
                console.say(f"sample: {line}")
            del model  # frees its memory before the next one is loaded
    local = any(isinstance(candidate, Decoder) for candidate in left)
    facts = {"prompt": e.prompt.digest, "seed": e.config.seed, "settings": draw.settings(e)}
    e.workdir.note("sample", {**facts, **(devices() if local else {})})
    for name, of_model in drawn.items():
        done = "nothing to do"
        if asked := of_model.summary.asked:
            settled, in_batch = of_model.summary.settled, of_model.summary.in_batch
            done = f"{settled} drawn now"
            if in_batch:
                done += f", {in_batch} in an open batch"
            if missing := asked - settled - in_batch:
                done += f", {missing} missing"
            if of_model.tokens:
                rate = of_model.tokens / max(of_model.seconds, 1e-9)
                done += f", {rate:,.0f} tokens/s with compilation"
        console.say(f"sample: {name}: {of_model.summary.total} completions, {done}")
    in_batch = {name: of_model.summary.in_batch for name, of_model in drawn.items()}
    if waiting := [f"{rows} completions of {name}" for name, rows in in_batch.items() if rows]:
        raise Stopped(
            f"{', '.join(waiting)} are in an open batch at the service: "
            "--config.sample.batch=True fetches them"
        )


def _say_of_replaced(e: Experiment, name: str, ledger: Ledger) -> None:
    """Prints how many completions of an earlier run do not count any more, and why."""
    if not (count := draw.replaced(ledger, name)):
        return
    before = artifacts.section(e.workdir, "sample", {"settings?": dict}).get("settings", {})
    now = json.loads(json.dumps(draw.settings(e)))
    changed = [f"config.{field}" for field in before.keys() & now if before[field] != now[field]]
    what = ", ".join(sorted(changed)) or "its model or a setting"
    console.say(f"sample: {name}: {what} changed: {count} completions are drawn anew")


def _forecast(
    e: Experiment, left: list[Candidate], requests: list[Request], ledger: Ledger
) -> tuple[dict[str, driver.Work], dict[str, Payments]]:
    """Prints what the open completions of each service may cost.

    Returns the open completions of the services and the payments to them, by name.
    """
    budget, tier = Budget(e.config, ledger), "batch" if e.config.sample.batch else ""
    services = {c.spec.name: c for c in left if c.service}
    paid = {name: budget.of(candidate.service, tier) for name, candidate in services.items()}
    works = {}
    for name, candidate in services.items():
        works[name] = draw.declare(name, candidate.load()[0], requests, ledger)
        _say_of_replaced(e, name, ledger)
        if line := forecast.line(works[name].pending, paid[name], ledger):
            console.say(f"sample: {line}")
    return works, paid
