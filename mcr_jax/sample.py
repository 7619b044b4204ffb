"""The sampling stage: N completions per case from a model of the workdir, into the ledger."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.example import prompt_messages
from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.generate import driver, local
from mcr_jax.generate.api import Request
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.memory import Plan
from mcr_jax.model import store
from mcr_jax.model.config import DecoderConfig
from mcr_jax.prompts import Prompt
from mcr_jax.workdir import Workdir, digest

STAGE = "sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was done for one model.

    Attributes:
      summary: how many completions are wanted, were open, and are there now.
      tokens: of the completions that were drawn now.
      seconds: that took, compilation included, the loading of the model not.
    """

    summary: driver.Summary
    tokens: int
    seconds: float


def check(config: ConfigDict) -> None:
    """Raises UsageError if config.sample names a model that is none."""
    for name in config.sample.models:
        store.check_name(name)


def sample(
    workdir: Workdir,
    config: ConfigDict,
    decoder: DecoderConfig,
    cases: Sequence[Case],
    tokenizer: Tokenizer,
    prompt: Prompt,
) -> Mapping[str, Drawn]:
    """Draws config.sample.n completions of every case from every model in config.sample.models.

    Before the first it prints what it will take of the devices' memory, and which prompts are too
    long. What the ledger holds already is not drawn again.

    Args:
      workdir: holds the checkpoints; its ledger takes the completions.
      config: sections sample, model and train, and the seed are read.
      decoder: its shape.
      cases: whose presentations are shown.
      tokenizer: made the ids the models know.
      prompt: the question each case is put in.

    Returns:
      What was done for each model, by its name.

    Raises:
      UsageError: config.sample names a model that is none, or asks for another mesh than there is.
      McrError: a checkpoint is missing, nothing fits into the devices, or the ledger cannot be
        written.
    """
    check(config)  # or the first would be sampled before a slip in the second is told
    plan = local.prepare(decoder, config, _wanted(config), tensor=config.sample.tensor)
    requests = [_request(case, config, prompt) for case in cases]
    drawn, mesh = {}, plan.mesh()

    @functools.cache
    def announce() -> None:  # once, and only if there is something to draw
        for line in (*plan.lines(), *_too_long(requests, tokenizer, config)):
            console.say(f"sample: {line}")

    with Ledger(workdir.ledger) as ledger:
        for name in config.sample.models:
            drawn[name] = _draw(
                name, plan, mesh, decoder, requests, workdir, config, tokenizer, ledger, announce
            )
    return drawn


def _draw(
    name: str,
    plan: Plan,
    mesh: Mesh,
    decoder: DecoderConfig,
    requests: Sequence[Request],
    workdir: Workdir,
    config: ConfigDict,
    tokenizer: Tokenizer,
    ledger: Ledger,
    announce: Callable[[], None],
) -> Drawn:
    """Samples one model, which is out of memory again when this returns."""
    model, origin = local.load(name, plan, mesh, decoder, workdir, config, tokenizer)
    facts = {
        "identity": model.identity,
        "weights": origin,
        "plan": plan.facts(),
        "config": digest(json.loads(config.to_json())),
    }
    workdir.note(f"sample.{name}", facts)
    jobs = [
        driver.Job(row=RowKey(stage=STAGE, case=r.key, model=name, sample=0), request=r)
        for r in requests
    ]
    began = time.monotonic()
    work = driver.declare(Scope(STAGE, name), jobs, model, ledger)
    if work.asked:
        announce()
    with console.track(f"sample {name}", work.total, work.held, model.status) as progress:
        summary = driver.answer(work, model, ledger, progress=progress.advance)
    return Drawn(summary=summary, tokens=model.tokens, seconds=time.monotonic() - began)


def _too_long(
    requests: Sequence[Request], tokenizer: Tokenizer, config: ConfigDict
) -> Iterator[str]:
    lengths = [len(tokenizer.encode_prompt(request.messages)) for request in requests]
    room = config.sample.prompt_tokens
    if long := sum(length > room for length in lengths):
        yield (
            f"{long} of {len(lengths)} prompts have more than config.sample.prompt_tokens={room} "
            f"tokens and end as prompt_too_long; the longest has {max(lengths)}"
        )


def _wanted(config: ConfigDict) -> Shape:
    c = config.sample
    return Shape(
        slots=c.slots,
        share=min(c.share, c.n),
        prompt_tokens=c.prompt_tokens,
        max_tokens=c.max_tokens,
        kv_dtype=c.kv_dtype,
    )


def _request(case: Case, config: ConfigDict, prompt: Prompt) -> Request:
    c = config.sample
    return Request(
        key=case.fingerprint,
        messages=prompt_messages(case, prompt),
        n=c.n,
        temperature=c.temperature,
        top_k=c.top_k,
        top_p=c.top_p,
        max_tokens=c.max_tokens,
        stop=c.stop,
        seed=config.seed,
    )
