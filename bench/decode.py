"""Sampled tokens per second of one decoder, against transformers' `generate` with the same weights.

    python -m bench.decode                    # the CPU reference shape, float32: equal and ragged
    python -m bench.decode --what=ragged --runs=3

Equal: 4 prompts of 256 tokens, 4 samples each, 64 tokens each. Ragged: 96 prompts, 10 samples each,
with random lengths between 32 and 256. transformers forces its end token at the same lengths, in
batches of the number of prompts that is fastest. A run includes the prefill of all prompts; runs
alternate, and the median of each counts.

At the end of our run slots are idle (`busy` is the share of busy slots), so there are many prompts;
an evaluation has 897. transformers takes one batch after the other, so 16 prompts suffice for its
rate; `--peer-part=96` takes all.
"""

import argparse
import dataclasses
import tempfile

import jax
import numpy as np
import torch
import transformers

from mcr_jax.generate.engine.engine import Engine
from mcr_jax.generate.engine.scheduling import Prompt
from mcr_jax.generate.engine.state import Shape
from mcr_jax.generate.engine.weights import take
from mcr_jax.model import hf
from mcr_jax.model.sharding import one_device

from . import alternate, fastest, line
from .forward import SHAPES

EOS = 2
PROMPT_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("equal", "ragged", "both"), default="both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slots", type=int, default=0, help="0: 16 of equal, 160 of ragged")
    parser.add_argument("--peer-prompts", default="4,8,16", help="batch sizes to choose from")
    parser.add_argument(
        "--peer-part", type=int, default=16, help="prompts of ragged for the peer's rate"
    )
    flags = parser.parse_args()
    config = transformers.Qwen2Config(**SHAPES["reference"], max_position_embeddings=8192)
    config.eos_token_id = config.pad_token_id = EOS
    torch.manual_seed(0)
    peer = transformers.Qwen2ForCausalLM(config).float().eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = hf.load(folder)
    weights, rng = take(model), np.random.default_rng(0)

    def compare(what, lengths, slots, batches, part) -> None:
        _compare(what, model.config, weights, peer, lengths, slots, batches, part, flags.runs)

    if flags.what in ("equal", "both"):
        compare("equal", np.full((4, 4), 64), flags.slots or 16, (4,), 4)
    if flags.what in ("ragged", "both"):
        lengths = rng.integers(32, 257, (96, 10))
        batches = tuple(map(int, flags.peer_prompts.split(",")))
        compare("ragged", lengths, flags.slots or 160, batches, flags.peer_part)


def _compare(what, config, weights, peer, lengths, slots, batches, part, runs) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, config.vocab_size, (len(lengths), PROMPT_TOKENS))
    shape = Shape(
        slots=slots,
        share=lengths.shape[1],
        prompt_tokens=PROMPT_TOKENS,
        max_tokens=int(lengths.max()),
    )
    engine = Engine(config, weights, shape, (), 0, one_device())
    prompts = [
        Prompt(
            tokens=row.astype(np.int32),
            case=number,
            samples=tuple(range(len(limits))),
            limits=tuple(map(int, limits)),
        )
        for number, (row, limits) in enumerate(zip(tokens, lengths, strict=True))
    ]

    def ours() -> None:
        drawn = sum(len(sample.tokens) for sample in engine.run(prompts))
        assert drawn == lengths.sum(), drawn

    size = fastest(batches, lambda n: Transformers(peer, tokens[:part][:n], lengths[:part][:n], n))
    theirs = Transformers(peer, tokens[:part], lengths[:part], size)
    list(engine.run([dataclasses.replace(prompts[0], samples=(0,), limits=(8,))]))  # compiles
    mine, other = alternate(ours, theirs, runs)
    line(
        bench="decode",
        ours=lengths.sum() / mine,
        peer=lengths[:part].sum() / other,
        unit="tokens/s",
        shape=f"{what}: {lengths.shape[0]} prompts of {PROMPT_TOKENS}, {lengths.shape[1]} samples "
        f"of {lengths.min()} to {lengths.max()}, float32",
        device=jax.devices()[0].device_kind,
        slots=slots,
        busy=round(int(lengths.sum()) / engine.pulse.steps / slots, 3),
        peer_batch=theirs.size,
        peer_prompts=part,
    )


class Transformers:
    """Call of transformers for all samples, `size` prompts at a time, longest samples first."""

    def __init__(self, peer, tokens, lengths, size: int):
        self._peer, self.size = peer, size
        order = np.argsort(-lengths.max(axis=1))
        self._batches = [
            (torch.from_numpy(tokens[part]), lengths[part].reshape(-1))
            for part in (order[first : first + size] for first in range(0, len(order), size))
        ]

    def __call__(self) -> int:
        device = self._peer.device
        for tokens, lengths in self._batches:
            tokens = tokens.to(device)
            with torch.inference_mode():
                out = self._peer.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    num_return_sequences=len(lengths) // len(tokens),
                    max_new_tokens=int(lengths.max()),
                    logits_processor=[_Ends(tokens.shape[1], lengths, device)],
                )
            assert out.shape == (len(lengths), tokens.shape[1] + lengths.max())
        return sum(int(lengths.sum()) for _, lengths in self._batches)


class _Ends(transformers.LogitsProcessor):
    """Logits processor that ends each sequence at its given length."""

    def __init__(self, prompt: int, lengths, device):
        self._prompt, self._lengths = prompt, torch.from_numpy(lengths).to(device)

    def __call__(self, input_ids, scores):
        at_end = self._lengths == input_ids.shape[1] - self._prompt + 1
        scores[:, EOS] = -torch.inf
        scores[at_end] = -torch.inf
        scores[at_end, EOS] = 0.0
        return scores


if __name__ == "__main__":
    main()
