"""Sampled tokens per second of a published model on real cases, against transformers' `generate`.

    python -m bench.real_model --model=SmolLM2-135M-Instruct --cases=cases.jsonl

Both sides draw `--samples` completions of the first `--prompts` cases, up to `--max-tokens` tokens
each, in float32, with the temperature of config.default(). Ours is the code of `mcr sample`: text
in, text out, with `--slots`. transformers gets the same ids, padded on the left, in batches of
similar lengths; the batch size is the fastest of `--peer-prompts`. Tokens after its end token do
not count. It takes one batch after the other, so its rate is measured on the first `--peer-part`
prompts; 16 takes all. Runs alternate, the median counts.
"""

import argparse

import jax
import torch
import transformers

from mcr_jax import config, prompts
from mcr_jax.cases import read_cases
from mcr_jax.data.example import prompt_messages
from mcr_jax.generate.api import Request
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.local import LocalModel
from mcr_jax.model import hf
from mcr_jax.model.sharding import one_device
from mcr_jax.text.tokenizer import Tokenizer

from . import alternate, fastest, line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--cases", required=True, help="JSONL or Parquet, as for `mcr build`")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--peer-prompts", default="1,2,4,8", help="batch sizes to choose from")
    parser.add_argument("--peer-part", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    flags = parser.parse_args()

    c = config.default()
    prompt, tokenizer = prompts.load(c.prompt), Tokenizer.load(flags.model)
    requests = [
        Request(
            key=case.fingerprint,
            messages=prompt_messages(case, prompt),
            n=flags.samples,
            temperature=c.sample.temperature,
            max_tokens=flags.max_tokens,
            seed=c.seed,
        )
        for case in read_cases(flags.cases)[: flags.prompts]
    ]
    ids = [tokenizer.encode_prompt(request.messages) for request in requests]
    shape = Shape(
        slots=flags.slots,
        share=flags.samples,
        prompt_tokens=max(map(len, ids)),
        max_tokens=flags.max_tokens,
    )
    model = LocalModel(
        hf.load(flags.model, dtype="float32"), tokenizer, shape, c.seed, one_device()
    )
    drawn: list[int] = []

    def ours() -> None:
        drawn.append(sum(reply.usage.output for reply in model.generate(requests)))

    part = ids[: flags.peer_part]
    peer = transformers.AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)

    def batches(prompts: list, size: int) -> Transformers:
        eos, temperature = tokenizer.eos_ids, c.sample.temperature
        return Transformers(flags, peer.eval(), prompts, eos, temperature, size)

    sizes = [int(size) for size in flags.peer_prompts.split(",")]
    theirs = batches(part, fastest(sizes, lambda size: batches(part[:size], size)))
    ours()  # compiles, for every length of prompts
    drawn.clear()
    mine, other = alternate(ours, theirs, flags.runs)
    line(
        bench="real_model",
        ours=sum(drawn) / len(drawn) / mine,
        peer=sum(theirs.drawn) / len(theirs.drawn) / other,
        unit="tokens/s",
        shape=f"{len(ids)} prompts of {min(map(len, ids))} to {max(map(len, ids))}, "
        f"{flags.samples} samples of up to {flags.max_tokens}, float32",
        device=jax.devices()[0].device_kind,
        slots=flags.slots,
        peer_batch=theirs.size,
        peer_prompts=len(part),
        mean_tokens=round(sum(drawn) / len(drawn) / len(ids) / flags.samples, 1),
    )


class Transformers:
    """Call of transformers for all samples of all prompts, `size` prompts at a time.

    Attributes:
      size: number of prompts in a batch.
      drawn: number of tokens up to the end tokens, of every call.
    """

    def __init__(self, flags, peer, ids, eos: tuple[int, ...], temperature: float, size: int):
        self._flags, self._peer, self._eos, self.size = flags, peer, list(eos), size
        self._temperature = temperature
        ids = sorted(ids, key=len)
        self._batches = [ids[first : first + size] for first in range(0, len(ids), size)]
        self.drawn: list[int] = []

    def __call__(self) -> int:
        self.drawn.append(sum(map(self._batch, self._batches)))
        return self.drawn[-1]

    def _batch(self, ids) -> int:
        longest = max(map(len, ids))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        with torch.inference_mode():
            out = self._peer.generate(
                tokens.to(self._peer.device),
                attention_mask=mask.to(self._peer.device),
                do_sample=True,
                temperature=self._temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=self._flags.samples,
                max_new_tokens=self._flags.max_tokens,
                eos_token_id=self._eos,
                pad_token_id=self._eos[0],
            )
        new = out[:, longest:].cpu()
        ended = torch.isin(new, torch.tensor(self._eos)).int().cumsum(dim=1)
        after_end = (ended.roll(1, dims=1) > 0) & (torch.arange(new.shape[1]) > 0)
        return int((~after_end).sum())


if __name__ == "__main__":
    main()
