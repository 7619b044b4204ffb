"""The sampling stage: N completions per case from a model of the workdir, into the ledger."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.example import prompt_messages
from mcr_jax.generate import driver, room
from mcr_jax.generate.api import Request
from mcr_jax.generate.ledger import Ledger, RowKey, Scope, opened
from mcr_jax.model.model_names import check_name
from mcr_jax.prompts import Prompt
from mcr_jax.workdir import Workdir, digest

if TYPE_CHECKING:
    from mcr_jax.generate.engine.state import Shape
    from mcr_jax.generate.local import LocalModel
    from mcr_jax.model.shape import DecoderConfig
    from mcr_jax.text.tokenizer import Tokenizer

STAGE = "sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Outcome of sampling one model.

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
        check_name(name)


def held(
    workdir: Workdir,
    config: ConfigDict,
    cases: Sequence[Case],
    prompt: Prompt,
    name: str,
    identity: str,
) -> int | None:
    """The number of completions that are wanted of a model, or None where one of them is open.

    Nothing is loaded, and nothing is written unless fewer are wanted than before.

    Args:
      workdir: its ledger has the completions.
      config: sections sample and the seed are read.
      cases, prompt: as for `sample`.
      name: of the model.
      identity: of the model, under which its completions stand in the ledger.

    Raises:
      McrError: the ledger cannot be read or written.
    """
    wanted = {}
    for request in (_request(case, config, prompt) for case in cases):
        job = driver.Job(row=_row(request, name), request=request)
        wanted |= dict.fromkeys(map(job.row_of, request.wanted), request.digest(identity))
    scope = Scope(STAGE, name)
    with opened(workdir) as ledger:
        there = ledger.answers(scope)
        for row, request_digest in wanted.items():
            attempt = there.get(row)
            if attempt is None or attempt.digest != request_digest or not attempt.outcome.settled:
                return None
        if there.keys() != wanted.keys():  # fewer than before
            ledger.declare(scope, wanted)
    return len(wanted)


def require_room(
    workdir: Workdir, config: ConfigDict, cases: Sequence[Case], names: Sequence[str]
) -> None:
    """Raises McrError if the disk of the ledger is too small for the completions that are open.

    Args:
      workdir: its ledger takes the completions.
      config: section sample is read.
      cases, names: as for `sample`.
    """
    c, scopes = config.sample, [Scope(STAGE, name) for name in names]
    remedy = "use another --workdir, or lower config.sample.n or config.sample.max_tokens"
    room.require_room(workdir, scopes, len(cases) * c.n * len(names), c.max_tokens, remedy)


def sample(
    workdir: Workdir,
    config: ConfigDict,
    decoder: "DecoderConfig",
    cases: Sequence[Case],
    tokenizer: "Tokenizer",
    prompt: Prompt,
    names: Sequence[str],
    rests: Callable[[str], Mapping[str, Any]],
) -> Mapping[str, Drawn]:
    """Draws config.sample.n completions of every case from every model in `names`.

    Before the first it prints what it will take of the devices' memory, and which prompts are too
    long. What the ledger holds already is not drawn again.

    Args:
      workdir: holds the checkpoints; its ledger takes the completions.
      config: sections sample, model and train, and the seed are read.
      decoder: its shape.
      cases: whose presentations are shown.
      tokenizer: made the ids the models know.
      prompt: the question each case is put in.
      names: models of config.sample.models.
      rests: what the identity of a model follows from, for the manifest.

    Returns:
      What was done for each model, by its name.

    Raises:
      UsageError: config.sample names a model that is none, or asks for another mesh than there is.
      McrError: a checkpoint is missing, nothing fits into the devices, or the ledger cannot be
        written.
    """
    from mcr_jax.generate import local

    check(config)  # or the first would be sampled before a slip in the second is told
    plan = local.prepare(decoder, config, _wanted(config), tensor=config.sample.tensor)
    requests = [_request(case, config, prompt) for case in cases]
    drawn, mesh = {}, plan.mesh()

    @functools.cache
    def announce() -> None:  # once, and only if there is something to draw
        for line in (*plan.lines(), *_too_long(requests, tokenizer, config)):
            console.say(f"sample: {line}")

    with opened(workdir) as ledger:
        for name in names:
            model, origin = local.load(name, plan, mesh, decoder, workdir, config, tokenizer)
            facts = {
                "identity": model.identity,
                "weights": origin,
                "rests": rests(name),
                "plan": plan.facts(),
                "config": digest(json.loads(config.to_json())),
            }
            workdir.note(f"sample.{name}", facts)
            drawn[name] = _draw(name, model, requests, ledger, announce)
            del model  # out of memory before the next one is loaded
    return drawn


def _draw(
    name: str,
    model: "LocalModel",
    requests: Sequence[Request],
    ledger: Ledger,
    announce: Callable[[], None],
) -> Drawn:
    """Samples one model."""
    jobs = [driver.Job(row=_row(request, name), request=request) for request in requests]
    began = time.monotonic()
    work = driver.declare(Scope(STAGE, name), jobs, model, ledger)
    if work.asked:
        announce()
    with console.track(f"sample {name}", work.total, work.held, model.status) as progress:
        summary = driver.answer(work, model, ledger, progress=progress.advance)
    return Drawn(summary=summary, tokens=model.tokens, seconds=time.monotonic() - began)


def _row(request: Request, name: str) -> RowKey:
    return RowKey(stage=STAGE, case=request.key, model=name, sample=0)


def _too_long(
    requests: Sequence[Request], tokenizer: "Tokenizer", config: ConfigDict
) -> Iterator[str]:
    lengths = [len(tokenizer.encode_prompt(request.messages)) for request in requests]
    room = config.sample.prompt_tokens
    if long := sum(length > room for length in lengths):
        yield (
            f"{long} of {len(lengths)} prompts have more than config.sample.prompt_tokens={room} "
            f"tokens and end as prompt_too_long; the longest has {max(lengths)}"
        )


def _wanted(config: ConfigDict) -> "Shape":
    from mcr_jax.generate.engine.state import Shape

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
