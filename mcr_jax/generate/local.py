"""Decoder on the devices of this machine as a `Generator`: text in, text out, by the engine.

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
from mcr_jax.errors import McrError, one_line
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

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # in errors of XLA


class LocalModel:
    """Samples from a decoder.

    Attributes:
      identity: name of all that determines the tokens: weights, tokenizer, seed, prompt length and
        KV cache dtype of the engine. The number of slots is not part of it.
      tokens: number of tokens in the answers so far.

    Args:
      model: the decoder; its weights move to the engine, and the object must not be used again.
      tokenizer: tokenizer of the model.
      shape: sizes of the engine.
      seed: root of all random keys.
      mesh: mesh that holds the weights.
    """

    concurrency = 1

    def __init__(self, model: Decoder, tokenizer: Tokenizer, shape: Shape, seed: int, mesh: Mesh):
        self._tokenizer, self._shape = tokenizer, shape
        self._vocab_size = model.config.vocab_size
        self._eos = frozenset(tokenizer.eos_ids)
        self._version = fingerprint(model)
        self._engine = Engine(model.config, take(model), shape, tokenizer.eos_ids, seed, mesh)
        self._first: tuple[Pulse, float] | None = None  # with tokens in this run, and its time
        self._last, self._busy = Pulse(), 0  # at the last `status`, and slots with work before it
        self.tokens = 0
        self.identity = (
            f"jax/{self._version}/{tokenizer.fingerprint}/seed={seed}/prompt={shape.prompt_tokens}/"
            f"kv={shape.kv_dtype or model.config.dtype}"
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields every wanted answer as it finishes.

        Raises:
          McrError: the tokenizer is not the model's, an answer may exceed the engine's
            max_tokens, a device is out of memory, or logits are NaN.
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
        """Returns tokens per second and busy slots, the mean since the last call."""
        pulse, now = self._engine.pulse, time.monotonic()
        if not pulse.tokens:
            return ""
        if self._first is None or pulse.tokens < self._last.tokens:  # a new run
            self._first, self._last, self._busy = (pulse, now), Pulse(), 0
        if pulse.steps > self._last.steps:
            drawn = pulse.tokens - self._last.tokens
            self._busy = round(drawn / (pulse.steps - self._last.steps))
            self._last = pulse
        first, since = self._first
        slots = f"{self._busy} of {pulse.slots} slots"
        if pulse.tokens == first.tokens or now == since:
            return slots
        return f"{(pulse.tokens - first.tokens) / (now - since):,.0f} tokens/s, {slots}"

    def _ids(self, request: Request) -> list[int]:
        ids = self._tokenizer.encode_prompt(request.messages)
        if max(ids) >= self._vocab_size:
            raise McrError(
                f"the tokenizer gives id {max(ids)}, and the model has {self._vocab_size} ids: use "
                "the tokenizer of the model"
            )
        if request.max_tokens > self._shape.max_tokens:
            raise McrError(
                f"{request.key[:12]}: the request has max_tokens={request.max_tokens}, and the "
                f"engine has room for {self._shape.max_tokens}"
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
            stop=(
                StopFinder(self._text, request.stop, self._tokenizer.eos_ids)
                if request.stop
                else None
            ),
        )

    def _answer(self, request: Request, ids: list[int], sample: Sample) -> Reply:
        tokens = sample.tokens.tolist()
        self.tokens += len(tokens)
        text = self._text(tokens[:-1] if tokens[-1] in self._eos else tokens)
        mean_logprob = float(sample.logprobs.mean(dtype=np.float64))
        if not math.isfinite(mean_logprob):
            raise McrError(
                f"{request.key[:12]}: the model's probabilities are not numbers: check its weights "
                "and whether training diverged, or set config.sample.dtype=float32"
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
        """Decodes ids; a padded embedding may have ids without text, which the tokenizer lacks."""
        return self._tokenizer.decode([i for i in ids if i < self._tokenizer.vocab_size])

    def _reply(self, request: Request, index: int, text: str, outcome: Outcome, **rest) -> Reply:
        rest["model_version"] = self._version
        return Reply(key=request.key, index=index, text=text, outcome=outcome, **rest)


def prepare(
    decoder: DecoderConfig,
    config: ConfigDict,
    wanted: Shape,
    *,
    tensor: int = 0,
    section: str = "sample",
) -> Plan:
    """Plans sampling of a decoder on the devices of this process.

    Args:
      decoder: shape of the decoder, adapters included.
      config: provides `sample.dtype`.
      wanted: sizes of the engine of each replica; the plan may have fewer slots.
      tensor: number of devices per replica; 0 chooses.
      section: section of the config with the sizes, for errors.

    Raises:
      UsageError, McrError: see `slots.plan`.
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
    which: str = "",
) -> tuple[LocalModel, str]:
    """Loads a decoder of an experiment for `plan`; also returns the origin of its weights.

    Weights are loaded, or initialized, in the dtype of sampling; adapters are merged.

    Args:
      name: "base" or "sft", see `store.named`.
      plan: result of `prepare`.
      mesh: plan.mesh(); models on the same mesh share compiled programs.
      decoder: shape of the decoder, trained adapters included.
      workdir: holds the checkpoints unless `config.train.checkpoints` names another folder.
      config: provides `train.checkpoints`, `sample.checkpoint` and `seed`.
      tokenizer: tokenizer of the model.
      which: checkpoint of "sft": "newest", "best" or a step; "" is `sample.checkpoint`.

    Raises:
      UsageError: there is no decoder of that name.
      McrError: the weights cannot be read, or a device is out of memory.
    """
    gc.collect()  # frees the weights of an earlier model: flax modules are reference cycles
    with memory_errors():
        model, origin = store.named(
            *(name, dataclasses.replace(decoder, dtype=plan.config.dtype), mesh),
            checkpoints=config.train.checkpoints or workdir.checkpoints,
            which=which or config.sample.checkpoint,
            seed=config.seed,
        )
        return LocalModel(model, tokenizer, plan.shape, config.seed, mesh), origin


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns XLA's error about a device without memory into an McrError of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        line = one_line(str(error).splitlines()[0], 200)
        if not any(sign in line for sign in _OUT_OF_MEMORY):
            raise
        raise McrError(
            f"out of memory ({line}): if no other process uses the device, lower slots, "
            "prompt_tokens or max_tokens of the config; finished answers are kept"
        ) from error


def case_number(fingerprint: str) -> int:
    """Returns the first 32 bits of a hexadecimal fingerprint, which the random keys depend on."""
    return int(fingerprint[:8], 16)
