"""The sampling stage: N completions per case from a model of the workdir, into the ledger."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mcr_jax import console
from mcr_jax.cases import Case
from mcr_jax.data.example import prompt_messages
from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.errors import UsageError
from mcr_jax.generate import driver
from mcr_jax.generate.api import Request
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.local import LocalModel
from mcr_jax.model import store
from mcr_jax.model.blueprint import blueprint
from mcr_jax.model.config import DecoderConfig
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.sharding import make_mesh, one_device
from mcr_jax.prompts import Prompt
from mcr_jax.workdir import Workdir

STAGE = "sample"
UNTRAINED, TRAINED = "base", "sft"  # what config.sample.models may name
_WEIGHTS = 0.75  # the share of a device's memory that they may take of it alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """Per model, how many completions are wanted, were open, and are there now."""

    models: Mapping[str, driver.Summary]


def sample(
    workdir: Workdir,
    config: ConfigDict,
    shape: DecoderConfig,
    cases: Sequence[Case],
    tokenizer: Tokenizer,
    prompt: Prompt,
) -> Sampled:
    """Draws config.sample.n completions of every case from every model in config.sample.models.

    Args:
      workdir: holds the checkpoints; its ledger takes the completions.
      config: sections sample and the seed are read.
      shape: of the decoder.
      cases: whose presentations are shown.
      tokenizer: made the ids the models know.
      prompt: the question each case is put in.

    Raises:
      UsageError: config.sample names a model that is none.
      McrError: a checkpoint is missing, or the ledger cannot be written.
    """
    summaries, mesh = {}, _mesh(shape)
    with Ledger(workdir.ledger) as ledger:
        for name in config.sample.models:
            model, origin = _model(name, workdir, config, shape, mesh)
            generator = LocalModel(model, tokenizer, _engine_shape(config), config.seed, mesh)
            workdir.note(f"sample.{name}", {"identity": generator.identity, "weights": origin})
            jobs = [
                driver.Job(
                    row=RowKey(stage=STAGE, case=case.fingerprint, model=name, sample=0),
                    request=_request(case, config, prompt),
                )
                for case in cases
            ]
            summaries[name] = _run(name, jobs, generator, ledger)
            del model, generator  # or the next one would have to fit beside it
    return Sampled(models=summaries)


def _run(name: str, jobs: list[driver.Job], generator: LocalModel, ledger: Ledger):
    scope = Scope(STAGE, name)
    total = sum(job.request.n for job in jobs)
    held = sum(a is not None for a in ledger.answers(scope).values())
    with console.track(f"sample {name}", total, held) as progress:
        return driver.run(scope, jobs, generator, ledger, progress=progress.advance)


def _mesh(shape: DecoderConfig) -> Mesh:
    """One device, or all where one has no room for the weights and what sampling needs beside."""
    stats = jax.devices()[0].memory_stats() or {}  # CPUs tell none
    weights = jax.tree.leaves(blueprint(shape)[1])
    taken = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in weights)
    small = taken > _WEIGHTS * stats.get("bytes_limit", math.inf)
    return make_mesh(1, 1, -1) if small else one_device()


def _model(
    name: str, workdir: Workdir, config: ConfigDict, shape: DecoderConfig, mesh: Mesh
) -> tuple[Decoder, str]:
    if name == UNTRAINED:
        origin = shape.folder or f"drawn from seed {config.seed}"
        return store.untrained(shape, config.seed, mesh), origin
    if name == TRAINED:
        checkpoints = config.train.checkpoints or workdir.checkpoints
        which = config.sample.checkpoint
        model, step = store.trained(checkpoints, shape, mesh, which, config.seed)
        return model, f"checkpoint of step {step}"
    raise UsageError(f"config.sample.models names {name!r}; there are {UNTRAINED} and {TRAINED}")


def _engine_shape(config: ConfigDict) -> Shape:
    c = config.sample
    return Shape(
        slots=c.slots,
        share=c.share,
        prompt_tokens=c.prompt_tokens,
        max_tokens=c.max_tokens,
    )


def _request(case: Case, config: ConfigDict, prompt: Prompt) -> Request:
    c = config.sample
    return Request(
        key=case.fingerprint,
        messages=prompt_messages(case, prompt),
        n=c.n,
        temperature=c.temperature,
        top_p=c.top_p,
        max_tokens=c.max_tokens,
        seed=config.seed,
    )
