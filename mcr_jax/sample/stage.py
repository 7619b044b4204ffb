"""The sampling stage: N completions of every case from every model of config.sample.models."""

from mcr_jax import console, model_specs
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.generate.ledger import opened
from mcr_jax.sample import draw
from mcr_jax.sample.candidates import Candidate, candidates
from mcr_jax.sigterm import stoppable


def ready(experiment: Experiment) -> None:
    """Raises UsageError if config.sample names an unknown model."""
    model_specs.specs(experiment.config)


def run(experiment: Experiment) -> None:
    """Samples the missing completions; loads only models with missing completions.

    Raises:
      Stopped: SIGTERM came; every completion that was finished is in the ledger.
    """
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
            _draw(experiment, left)


def _draw(e: Experiment, left: list[Candidate]) -> None:
    if any(candidate.spec.own for candidate in left):
        e.refuse_other(e.origin())
    e.eval_cases()  # raises if the split is missing or empty
    for candidate in left:  # all of them before the first is sampled
        candidate.ready()
    draw.require_room(e, [candidate.spec.name for candidate in left])
    requests, drawn = draw.requests(e), {}
    with opened(e.workdir) as ledger:
        for candidate in left:  # the services work while the others sample
            candidate.submit(requests, ledger)
        for candidate in left:
            name = candidate.spec.name
            model, facts = candidate.load()
            e.workdir.note(f"sample.{name}", facts)
            drawn[name] = draw.draw(name, model, requests, ledger, candidate.lines)
            del model  # frees its memory before the next one is loaded
    e.workdir.note("sample", {"prompt": e.prompt.digest, "seed": e.config.seed, **devices()})
    for name, of_model in drawn.items():
        done = "nothing to do"
        if asked := of_model.summary.asked:
            done = f"{asked} drawn now"
            if of_model.tokens:
                rate = of_model.tokens / max(of_model.seconds, 1e-9)
                done += f", {rate:,.0f} tokens/s with compilation"
        console.say(f"sample: {name}: {of_model.summary.total} completions, {done}")
