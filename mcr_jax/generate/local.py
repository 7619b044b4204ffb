"""A decoder on this machine's devices as a `Generator`: text in, text out, through the engine.

plan = prepare(decoder, config, Shape(slots=64, prompt_tokens=2048, max_tokens=1536))
model, origin = load("sft", plan, plan.mesh(), decoder, workdir, config, tokenizer)
driver.run(scope, jobs, model, ledger)
"""

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mcr_jax.config import sampling_dtype
from mcr_jax.errors import McrError
from mcr_jax.generate import slots
from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.engine import kernels
from mcr_jax.generate.engine.engine import Engine, Pulse
from mcr_jax.generate.engine.scheduling import Prompt, Sample
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.engine.weights import take
from mcr_jax.generate.slots import Plan
from mcr_jax.generate.stops import StopFinder, cut
from mcr_jax.model import store
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.fingerprint import fingerprint
from mcr_jax.model.shape import DecoderConfig
from mcr_jax.text.tokenizer import Tokenizer
from mcr_jax.workdir import Workdir

_FULL = ("RESOURCE_EXHAUSTED", "Out of memory")  # how XLA says that a device's memory is


class LocalModel:
    """Samples from a decoder.

    Attributes:
      identity: what decides tokens: weights, tokenizer, seed, room for a prompt and the dtype of
        keys and values. Slots and the like do not.
      tokens: in the answers given so far.

    Args:
      model: the decoder; its weights are taken over, and it is of no use after it.
      tokenizer: turns conversations into its ids.
      shape: sizes of the engine.
      seed: root of every sample's key.
      mesh: that the weights lie on.
    """

    concurrency = 1

    def __init__(self, model: Decoder, tokenizer: Tokenizer, shape: Shape, seed: int, mesh: Mesh):
        self._tokenizer, self._shape = tokenizer, shape
        self._vocab_size = model.config.vocab_size
        self._eos = frozenset(tokenizer.eos_ids)
        self._version = fingerprint(model)
        self._engine = Engine(model.config, take(model), shape, tokenizer.eos_ids, seed, mesh)
        self._first: tuple[Pulse, float] | None = None  # that showed tokens, and when
        self._last, self._live = Pulse(), 0  # the last pulse, and the slots that were writing
        self.tokens = 0
        self.identity = (
            f"jax/{self._version}/{tokenizer.fingerprint}/seed={seed}/prompt={shape.prompt_tokens}/"
            f"kv={shape.kv_dtype or model.config.dtype}"
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields every wanted answer, as they finish.

        Raises:
          McrError: the tokenizer is not the model's, an answer may be longer than the engine has
            room for, a device is out of memory, or the model computes no numbers.
        """
        self._first = None
        fitting: list[tuple[Request, list[int]]] = []
        for request in requests:
            ids = self._ids(request)
            if len(ids) <= self._shape.prompt_tokens:
                fitting.append((request, ids))
                continue
            error = f"{len(ids)} prompt tokens, room for {self._shape.prompt_tokens}"
            for index in request.wanted:
                yield self._reply(request, index, "", Outcome.PROMPT_TOO_LONG, error=error)
        prompts = (self._prompt(request, ids) for request, ids in fitting)
        samples = self._engine.run(prompts)
        while True:
            with memory_errors():
                sample = next(samples, None)
            if sample is None:
                return
            yield self._answer(*fitting[sample.prompt], sample)

    def status(self) -> str:
        """Progress of the run: tokens per second and busy slots.

        The slots are the mean since the last time this was asked.
        """
        pulse, now = self._engine.pulse, time.monotonic()
        if not pulse.tokens:
            return ""
        if self._first is None or pulse.tokens < self._last.tokens:  # of another run
            self._first, self._last, self._live = (pulse, now), Pulse(), 0
        if pulse.steps > self._last.steps:
            drawn = pulse.tokens - self._last.tokens
            self._live = round(drawn / (pulse.steps - self._last.steps))
            self._last = pulse
        first, since = self._first
        slots = f"{self._live} of {pulse.slots} slots"
        if pulse.tokens == first.tokens or now == since:
            return slots
        return f"{(pulse.tokens - first.tokens) / (now - since):,.0f} tokens/s, {slots}"

    def _ids(self, request: Request) -> list[int]:
        ids = self._tokenizer.encode_prompt(request.messages)
        if max(ids) >= self._vocab_size:
            raise McrError(
                f"the tokenizer gives id {max(ids)}, and the model has {self._vocab_size} ids"
            )
        if request.max_tokens > self._shape.max_tokens:
            raise McrError(
                f"{request.key[:12]}: an answer of up to {request.max_tokens} tokens is asked for, "
                f"and the engine has room for {self._shape.max_tokens}"
            )
        return ids

    def _prompt(self, request: Request, ids: list[int]) -> Prompt:
        return Prompt(
            tokens=np.asarray(ids, np.int32),
            case=case_number(request.key),
            samples=request.wanted,
            limits=(request.max_tokens,) * len(request.wanted),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            stop=self._stop(request.stop),
        )

    def _stop(self, stops: tuple[str, ...]) -> StopFinder | None:
        return StopFinder(self._text, stops, self._tokenizer.eos_ids) if stops else None

    def _answer(self, request: Request, ids: list[int], sample: Sample) -> Reply:
        tokens = sample.tokens.tolist()
        self.tokens += len(tokens)
        text = self._text(tokens[:-1] if tokens[-1] in self._eos else tokens)
        mean_logprob = float(sample.logprobs.mean(dtype=np.float64))
        if not math.isfinite(mean_logprob):
            raise McrError(
                f"{request.key[:12]}: the model's probabilities are not numbers: its weights are "
                "broken, or training diverged, or they overflow in config.sample.dtype"
            )
        return self._reply(
            request,
            sample.index,
            cut(text, request.stop),
            Outcome.OK if sample.ended else Outcome.TRUNCATED,
            usage=Usage(prompt=len(ids), output=len(tokens)),
            mean_logprob=mean_logprob,
        )

    def _text(self, ids: Sequence[int]) -> str:
        """The text of ids; a model may have ids, for no text, that its tokenizer lacks."""
        return self._tokenizer.decode([i for i in ids if i < self._tokenizer.vocab_size])

    def _reply(self, request: Request, index: int, text: str, outcome: Outcome, **rest) -> Reply:
        version = self._version
        return Reply(
            key=request.key, index=index, text=text, outcome=outcome, model_version=version, **rest
        )


def prepare(
    decoder: DecoderConfig,
    config: ConfigDict,
    wanted: Shape,
    *,
    tensor: int = 0,
    section: str = "sample",
) -> Plan:
    """The plan for sampling a decoder on the devices of this process.

    Args:
      decoder: its shape, with adapters where it has some.
      config: says in which dtype weights are sampled.
      wanted: sizes of the engine on each copy of the model; the plan may have fewer slots.
      tensor: devices that hold a copy; 0 chooses.
      section: of the config that the sizes come from, for errors.

    Raises:
      UsageError, McrError: as `slots.plan`.
    """
    decoder = dataclasses.replace(decoder, dtype=sampling_dtype(config), lora=None)
    kernel = kernels.choose(decoder, wanted)
    return slots.plan(decoder, wanted, slots.machine(), kernel, tensor=tensor, section=section)


def load(
    name: str,
    plan: Plan,
    mesh: Mesh,
    decoder: DecoderConfig,
    workdir: Workdir,
    config: ConfigDict,
    tokenizer: Tokenizer,
) -> tuple[LocalModel, str]:
    """A decoder of an experiment as `plan` has it, and a word about where its weights are from.

    Weights are read, or drawn, in the dtype that they are sampled in; adapters are merged.

    Args:
      name: "base" or "sft", see `store.named`.
      plan: from `prepare`.
      mesh: plan.mesh(); models that are loaded one after the other share what is compiled for it.
      decoder: its shape, with adapters where some were trained.
      workdir: holds the checkpoints, unless the config names another place.
      config: says which checkpoint, and the seed.
      tokenizer: made the ids the model knows.

    Raises:
      UsageError: there is no decoder of that name.
      McrError: the weights cannot be read, or a device is out of memory.
    """
    gc.collect()  # flax modules hold themselves: what one before had is there until then
    with memory_errors():
        model, origin = store.named(
            *(name, dataclasses.replace(decoder, dtype=plan.config.dtype), mesh),
            checkpoints=config.train.checkpoints or workdir.checkpoints,
            which=config.sample.checkpoint,
            seed=config.seed,
        )
        return LocalModel(model, tokenizer, plan.shape, config.seed, mesh), origin


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Tells in one line that a device is out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0][:200]
        if not any(sign in line for sign in _FULL):
            raise
        raise McrError(
            f"out of memory ({line}): if nothing else is on the device, lower the slots, "
            "prompt_tokens or max_tokens of the config; what was drawn is kept"
        ) from error


def case_number(fingerprint: str) -> int:
    """The 32 bits of a hexadecimal fingerprint that a case's random key is folded from."""
    return int(fingerprint[:8], 16)
