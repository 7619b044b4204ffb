"""Stitching stage: rewrites statements as traces, audits them and, if configured, judges them."""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from mcr_jax import artifacts, console, prompts, statistics
from mcr_jax import config as configs
from mcr_jax.config import judge_name
from mcr_jax.config_fields import FIELDS
from mcr_jax.data import traces
from mcr_jax.data.dataset import dataset_fingerprint
from mcr_jax.errors import McrError
from mcr_jax.experiment.experiment import Experiment, devices
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.budget import Budget, is_service, require_price
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Scope, opened
from mcr_jax.generate.room import require_room
from mcr_jax.judges.choose import make_judge
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.sigterm import stoppable
from mcr_jax.stitch.audit import VERSION
from mcr_jax.stitch.meaning import Meaning
from mcr_jax.stitch.meaning import settings as judge_settings
from mcr_jax.stitch.summary import summarize, table
from mcr_jax.stitch.write import PROMPT, STAGE, check, stitch
from mcr_jax.workdir import digest

# Fields that change no trace: the digest of inputs uses their defaults. Older manifests used their
# values.
NO_EFFECT = ("stitch.concurrency", "stitch.timeout", "score.answer")


def ready(experiment: Experiment) -> None:
    """Raises UsageError if a prompt or a service cannot be used; called before other work."""
    _prompt(experiment.config)
    judge_settings(experiment.config)
    if experiment.config.stitch.model == "gemini":
        _gemini(experiment.config)
    _judge(experiment.config)
    for name in (model_name(experiment.config), _judge_name(experiment.config)):
        require_price(experiment.config, name if is_service(name, experiment.config) else "")


def run(experiment: Experiment) -> None:
    """Writes traces.parquet and stitch.json, unless both exist with these inputs."""
    e, workdir, prompt = experiment, experiment.workdir, _prompt(experiment.config)
    e.refuse_other(e.origin())
    inputs = _inputs(e, prompt)
    if _done(e, inputs):
        console.say(f"stitch: nothing to do, the traces are in {workdir.traces}")
        _show(artifacts.stitching(workdir))
        return
    _refuse_to_replace(e, inputs)
    cases = e.training_cases()
    scope = Scope(STAGE, model_name(e.config))
    remedy = "use another --workdir, or lower config.stitch.max_tokens"
    require_room(workdir, [scope], len(cases), e.config.stitch.max_tokens, remedy)
    judge = _judge(e.config)
    generator, origin, status = _generator(e)
    workdir.note("stitch.model", {"identity": generator.identity, "weights": origin})
    stopped = "stopped by SIGTERM; every trace that came is kept, call again to go on"
    with stoppable(stopped), opened(workdir) as ledger:
        name, budget = model_name(e.config), Budget(e.config, ledger)
        by = _judge_name(e.config)
        of_judge = budget.of(by) if is_service(by, e.config) else None
        payments = budget.of(name) if is_service(name, e.config) else None
        meaning = Meaning(ledger, e.config, judge, name, of_judge) if judge else None
        if meaning:
            workdir.note("stitch.judge", meaning.about)
        rows = stitch(ledger, e.config, cases, generator, name, prompt, status, meaning, payments)
    fingerprint = traces.digest({row.fingerprint: row.trace for row in rows})
    if e.config.train.traces == traces.STITCHED:  # keeps the traces of a trained model
        e.refuse_other({"traces": fingerprint})
    score = e.config.score
    settings = {"confidence": score.confidence, "resamples": score.resamples, "seed": e.config.seed}
    interval = functools.partial(statistics.interval, **settings)
    summary = summarize(rows, interval, score.confidence, meaning)
    traces.write(workdir.traces, rows)
    workdir.write_json(workdir.stitching, {**summary, "traces": fingerprint})
    workdir.note("stitch", {"inputs": inputs, "traces": fingerprint, **devices()})
    console.say(f"stitch: {len(rows)} traces in {workdir.traces}")
    _show(summary)
    if not meaning:
        console.say(
            "stitch: no judge checked that the traces keep the meaning of the statements; "
            "--config.stitch.judge=gemini uses Gemini"
        )
    if all(row.source == traces.JOINED for row in rows):
        console.say(
            "stitch: no trace passed, all are joined statements; stitch.json counts why: "
            "try more config.stitch.attempts or another config.stitch.model"
        )


def model_name(config: ConfigDict) -> str:
    """Returns the ledger name of the model in config.stitch."""
    c = config.stitch
    return f"gemini:{c.gemini}" if c.model == "gemini" else c.model


def _generator(e: Experiment) -> tuple[Generator | Remote, str, Callable[[], str] | None]:
    """Returns the generator of config.stitch, the origin of its weights, and a status function."""
    c = e.config.stitch
    if c.model == "gemini":
        model = _gemini(e.config)
        if not model.samples:
            console.say(
                f"stitch: {c.gemini} uses the sampling defaults of the service: "
                "config.stitch.temperature and top_p are not sent"
            )
        return model, "the service's", model.pacer.status
    from mcr_jax.generate import local
    from mcr_jax.generate.engine.state import Shape

    # One sample per prompt at a time: only cases whose first sample failed get a second one.
    limits = {"prompt_tokens": c.prompt_tokens, "max_tokens": c.max_tokens}
    slots, kv_dtype = e.config.sample.slots, e.config.sample.kv_dtype
    shape = Shape(slots=slots, share=1, kv_dtype=kv_dtype, **limits)
    plan = local.prepare(e.shape, e.config, shape, section="stitch")
    for line in plan.lines():
        console.say(f"stitch: {line}")
    model, origin = local.load(
        c.model, plan, plan.mesh(), e.shape, e.workdir, e.config, e.tokenizer
    )
    return model, origin, model.status


def _judge(config: ConfigDict) -> Generator | Remote | None:
    """Returns the generator of config.stitch.judge. Raises UsageError if it cannot be used."""
    return make_judge(config, config.stitch.judge) if config.stitch.judge else None


def _judge_name(config: ConfigDict) -> str:
    """Returns the ledger name of config.stitch.judge; "" without one."""
    return judge_name(config, config.stitch.judge) if config.stitch.judge else ""


def _prompt(config: ConfigDict) -> prompts.Prompt:
    """Returns the prompt. Raises UsageError if it cannot be used."""
    prompt = prompts.load(PROMPT, config.prompts)
    check(config, prompt)
    return prompt


def _gemini(config: ConfigDict) -> Gemini:
    """Returns the Gemini that writes. Raises UsageError if the key or a setting is wrong."""
    c, patience = config.stitch, config.judge.patience
    settings = {"timeout": c.timeout, "concurrency": c.concurrency, "thinking": c.thinking}
    return Gemini(c.gemini, patience=patience, **settings)


def _inputs(e: Experiment, prompt: prompts.Prompt) -> dict[str, Any]:
    """Returns everything that decides the traces, for the manifest."""
    fields = _fields(e.config) | {name: FIELDS[name].default for name in NO_EFFECT}
    judged = {"judge": by} if (by := judge_settings(e.config)) else {}
    trained = {"which": e.config.sample.checkpoint, "newest": newest_step(e.checkpoints)}
    return {
        "dataset": dataset_fingerprint(e.data_dir),
        "prompt": prompt.digest,
        "config": digest(fields),
        "audit": VERSION,
        "checkpoint": trained if e.config.stitch.model == "sft" else {},
        **judged,
        **e.origin(),
    }


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields in the digest of inputs; `judge` is an entry of its own."""
    decisive = ("seed", "stitch", "model", "lora", "score")
    fields = {n: v for n, v in configs.fields(config) if n.partition(".")[0] in decisive}
    del fields["stitch.judge"]
    return fields


def _done(e: Experiment, inputs: dict[str, Any]) -> bool:
    """Returns True if the files of these inputs exist and are whole."""
    w = e.workdir
    if not (w.traces.exists() and w.stitching.exists()):
        return False
    noted = _noted(e, inputs)
    if noted["inputs"] != inputs:
        return False
    try:
        found = traces.digest({row.fingerprint: row.trace for row in traces.read(w.traces)})
        shown = artifacts.stitching(w)
    except McrError:  # damaged: made again from the ledger
        return False
    return found == noted.get("traces") == shown.get("traces")


def _noted(e: Experiment, inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest's stitching section, with a digest of the older kind made anew."""
    noted = artifacts.section(e.workdir, "stitch", {"inputs?": dict})
    before = noted.get("inputs", {})
    if before.get("config") == digest(_fields(e.config)):
        before = before | {"config": inputs["config"]}
    return noted | {"inputs": before}


def _refuse_to_replace(e: Experiment, inputs: dict[str, Any]) -> None:
    """Raises UsageError, before the work, if a model was trained on traces of other inputs.

    A different version of the audit is no reason to refuse: `run` checks whether traces changed.
    """
    before = _noted(e, inputs)["inputs"]
    same = {**before, "audit": None} == {**inputs, "audit": None}
    if e.config.train.traces == traces.STITCHED and not same:
        e.refuse_other({"traces": "not yet made"})


def _show(summary: dict[str, Any]) -> None:
    Console().print(table(summary), highlight=False)
