"""A decoder on this machine's devices as a `Generator`: text in, text out, through the engine."""

from collections.abc import Iterator, Sequence

import numpy as np

from mcr_jax.data.tokenizer import Tokenizer
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.engine.decode import Prompts, Shape, sampler
from mcr_jax.model.decoder import Decoder
from mcr_jax.model.fingerprint import fingerprint


class LocalModel:
    """Samples from a decoder in batches of one fixed shape.

    Args:
      model: the decoder.
      tokenizer: turns conversations into its ids.
      shape: sizes of a batch; requests may not ask for more samples than it holds.
      seed: root of every sample's key.
    """

    concurrency = 1

    def __init__(self, model: Decoder, tokenizer: Tokenizer, shape: Shape, seed: int):
        self._tokenizer, self._shape = tokenizer, shape
        self._vocab_size = model.config.vocab_size
        self._version = fingerprint(model)
        self._answer = sampler(model, shape, tokenizer.eos_ids, seed)
        self.identity = (
            f"jax/{self._version}/{tokenizer.fingerprint}/seed={seed}/"
            f"{shape.prompts}x{shape.samples}x{shape.prompt_tokens}+{shape.max_tokens}"
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields every wanted answer, batch by batch.

        Raises:
          McrError: the tokenizer is not the model's.
          ValueError: a request wants more samples than a batch has room for.
        """
        fitting: list[tuple[Request, list[int]]] = []
        for request in requests:
            if len(request.wanted) > self._shape.samples:
                raise ValueError(f"{len(request.wanted)} samples, room for {self._shape.samples}")
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
        for first in range(0, len(fitting), self._shape.prompts):
            yield from self._batch(fitting[first : first + self._shape.prompts])

    def _batch(self, work: Sequence[tuple[Request, list[int]]]) -> Iterator[Reply]:
        answers = self._answer(self._pad(work))
        tokens, counts, ended = (np.asarray(x) for x in answers)
        for p, (request, ids) in enumerate(work):
            for n, index in enumerate(request.wanted):
                count, done = int(counts[p, n]), bool(ended[p, n])
                text = self._tokenizer.decode(tokens[p, n, : count - done].tolist())
                outcome = Outcome.OK if done else Outcome.TRUNCATED
                usage = Usage(prompt=len(ids), output=count)
                yield self._reply(request, index, text, outcome, usage=usage)

    def _pad(self, work: Sequence[tuple[Request, list[int]]]) -> Prompts:
        P, N, T = self._shape.prompts, self._shape.samples, self._shape.prompt_tokens
        batch = Prompts(
            tokens=np.zeros((P, T), np.int32),
            lengths=np.ones(P, np.int32),
            cases=np.zeros(P, np.uint32),
            samples=np.zeros((P, N), np.int32),
            wanted=np.zeros((P, N), bool),
            temperature=np.zeros(P, np.float32),
            top_p=np.ones(P, np.float32),
            limits=np.ones(P, np.int32),
        )
        for p, (request, ids) in enumerate(work):
            batch.tokens[p, : len(ids)] = ids
            batch.lengths[p] = len(ids)
            batch.cases[p] = case_number(request.key)
            batch.samples[p, : len(request.wanted)] = request.wanted
            batch.wanted[p, : len(request.wanted)] = True
            batch.temperature[p], batch.top_p[p] = request.temperature, request.top_p
            batch.limits[p] = min(request.max_tokens, self._shape.max_tokens)
        return batch

    def _reply(self, request: Request, index: int, text: str, outcome: Outcome, **rest) -> Reply:
        version = self._version
        return Reply(
            key=request.key, index=index, text=text, outcome=outcome, model_version=version, **rest
        )


def case_number(fingerprint: str) -> int:
    """The 32 bits of a hexadecimal fingerprint that a case's random key is folded from."""
    return int(fingerprint[:8], 16)
