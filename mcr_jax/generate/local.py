"""A decoder on this machine's devices as a `Generator`: text in, text out, through the engine."""

from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.engine.engine import Engine, Prompt
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.engine.weights import take
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.fingerprint import fingerprint


class LocalModel:
    """Samples from a decoder.

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
        self._version = fingerprint(model)
        weights = take(model)
        self.engine = Engine(model.config, weights, shape, tokenizer.eos_ids, seed, mesh)
        self.identity = (
            f"jax/{self._version}/{tokenizer.fingerprint}/seed={seed}/prompt={shape.prompt_tokens}/"
            f"kv={shape.kv_dtype or model.config.dtype}"
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields every wanted answer, as they finish.

        Raises:
          McrError: the tokenizer is not the model's.
        """
        fitting: list[tuple[Request, list[int]]] = []
        for request in requests:
            ids = self._tokenizer.encode_prompt(request.messages)
            if max(ids) >= self._vocab_size:
                raise McrError(
                    f"the tokenizer gives id {max(ids)}, and the model has {self._vocab_size} ids"
                )
            if len(ids) <= self._shape.prompt_tokens:
                fitting.append((request, ids))
                continue
            error = f"{len(ids)} prompt tokens, room for {self._shape.prompt_tokens}"
            for index in request.wanted:
                yield self._reply(request, index, "", Outcome.PROMPT_TOO_LONG, error=error)
        prompts = (self._prompt(request, ids) for request, ids in fitting)
        for sample in self.engine.run(prompts):
            request, ids = fitting[sample.prompt]
            text = self._tokenizer.decode(
                sample.tokens[: len(sample.tokens) - sample.ended].tolist()
            )
            outcome = Outcome.OK if sample.ended else Outcome.TRUNCATED
            usage = Usage(prompt=len(ids), output=len(sample.tokens))
            yield self._reply(request, sample.index, text, outcome, usage=usage)

    def _prompt(self, request: Request, ids: list[int]) -> Prompt:
        limit = min(request.max_tokens, self._shape.max_tokens)
        return Prompt(
            tokens=np.asarray(ids, np.int32),
            case=case_number(request.key),
            samples=request.wanted,
            limits=(limit,) * len(request.wanted),
            temperature=request.temperature,
            top_p=request.top_p,
        )

    def _reply(self, request: Request, index: int, text: str, outcome: Outcome, **rest) -> Reply:
        version = self._version
        return Reply(
            key=request.key, index=index, text=text, outcome=outcome, model_version=version, **rest
        )


def case_number(fingerprint: str) -> int:
    """The 32 bits of a hexadecimal fingerprint that a case's random key is folded from."""
    return int(fingerprint[:8], 16)
