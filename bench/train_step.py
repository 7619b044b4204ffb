"""Training tokens per second of one decoder, against transformers with the same weights.

    python -m bench.train_step                 # the CPU reference shape, float32: dense and ragged
    python -m bench.train_step --what=ragged --runs=3

Dense: 4 rows of 512, every token trained, one step. Ragged: 16 examples as long as real cases, with
loss on the answer only. A run is one pass: every example once, in steps of loss, gradients,
clipping and AdamW. Ours packs the examples, one row per step; transformers sorts them by length and
pads each batch to its longest, with the fastest batch size. Rows of 3,840 are filled almost
completely, as rows are that choose from many examples; with batches of 4 both make 4 steps. Passes
alternate, and the median of each counts; the losses of the first pass are compared. GLIBC_TUNABLES
applies to both.
"""

import argparse
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from mcr_jax.data.packing import plan
from mcr_jax.model import hf
from mcr_jax.train.optimizer import optimizer
from mcr_jax.train.step import init_state, train_step

from . import alternate, line
from .forward import SHAPES

OPTIM = {"learning_rate": 1e-4, "warmup_steps": 0, "steps": 1000, "weight_decay": 0.1}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("dense", "ragged", "both"), default="both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--row-tokens", type=int, default=3840, help="length of a packed row")
    parser.add_argument("--examples", type=int, default=16, help="number in the ragged pass")
    parser.add_argument("--peer-rows", default="1,2,4", help="batch sizes to choose from")
    flags = parser.parse_args()
    config = transformers.Qwen2Config(**SHAPES["reference"], max_position_embeddings=8192)
    rng = np.random.default_rng(0)
    if flags.what in ("dense", "both"):
        full = [_example(rng, config.vocab_size, 0, 512) for _ in range(4)]
        _compare("dense 4x512 float32", config, full, 512, (4,), flags.runs)
    if flags.what in ("ragged", "both"):
        ragged = [
            _example(
                rng, config.vocab_size, *map(int, (rng.integers(250, 900), rng.integers(150, 600)))
            )
            for _ in range(flags.examples)
        ]
        name = f"ragged {flags.examples} examples float32, rows of {flags.row_tokens}"
        peer_rows = tuple(map(int, flags.peer_rows.split(",")))
        _compare(name, config, ragged, flags.row_tokens, peer_rows, flags.runs)


class _Example(NamedTuple):
    ids: np.ndarray
    trained: np.ndarray


def _example(rng: np.random.Generator, vocab: int, prompt: int, answer: int) -> _Example:
    ids = rng.integers(0, vocab, prompt + answer).astype(np.int32)
    return _Example(ids, np.arange(prompt + answer) >= prompt)


def _compare(name, config, examples, row_tokens, peer_rows, runs) -> None:
    torch.manual_seed(0)
    peer = transformers.Qwen2ForCausalLM(config).float().train()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        graph, params = nnx.split(hf.load(folder))
    ours = _Ours(graph, nnx.to_pure_dict(params), examples, row_tokens)
    theirs, first = _fastest([_Transformers(peer, examples, rows) for rows in peer_rows])
    losses = ours(), first
    mine, other = alternate(ours, theirs, runs)
    trained = sum(int(e.trained[1:].sum()) for e in examples)
    line(
        bench="train_step",
        ours=trained / mine,
        peer=trained / other,
        unit="trained tokens/s",
        shape=name,
        device=jax.devices()[0].device_kind,
        first_losses=[round(x, 4) for x in losses],
        steps=[len(ours.batches), len(theirs.batches)],
    )


def _fastest(passes: list["_Transformers"]) -> tuple["_Transformers", float]:
    """Runs passes of several batch sizes; returns the fastest, and the loss of the very first."""
    first, seconds = passes[-1](), []
    for call in passes:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return passes[seconds.index(min(seconds))], first


def _stack(rows: list[list[_Example]], row_tokens: int) -> dict[str, np.ndarray]:
    """Returns a batch for `train.step`; targets and weights are one token ahead in a segment."""
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: np.zeros((len(rows), row_tokens), np.int32) for name in names}
    batch["weights"] = np.zeros((len(rows), row_tokens), np.float32)
    for r, row in enumerate(rows):
        start = 0
        for segment, e in enumerate(row, 1):
            stop = start + len(e.ids)
            batch["tokens"][r, start:stop] = e.ids
            batch["targets"][r, start : stop - 1] = e.ids[1:]
            batch["weights"][r, start : stop - 1] = e.trained[1:]
            batch["positions"][r, start:stop] = np.arange(len(e.ids))
            batch["segment_ids"][r, start:stop] = segment
            start = stop
    return batch


class _Ours:
    """Pass over the examples: a step per packed row, or one step if all fill their rows.

    A call returns the mean loss.
    """

    def __init__(self, graph, params, examples, row_tokens):
        tx, schedule = optimizer(**OPTIM)
        lengths = [len(e.ids) for e in examples]
        packed = [[examples[i] for i in row] for row in plan(lengths, row_tokens, 0, 0)]
        full = all(length == row_tokens for length in lengths)
        steps = [packed] if full else [[row] for row in packed]
        self.batches = [_stack(rows, row_tokens) for rows in steps]
        self._state = init_state(params, tx)
        self._step = jax.jit(train_step(graph, tx, schedule), donate_argnums=0)

    def __call__(self) -> float:
        total = tokens = 0.0
        for batch in self.batches:
            self._state, metrics = self._step(self._state, jax.tree.map(jnp.asarray, batch))
            total += float(metrics["loss"]) * float(metrics["trained_tokens"])
            tokens += float(metrics["trained_tokens"])
        return total / tokens


class _Transformers:
    """Pass of transformers over the examples, longest batches first."""

    def __init__(self, model, examples, rows):
        self._model = model
        self._optim = torch.optim.AdamW(
            model.parameters(),
            lr=OPTIM["learning_rate"],
            weight_decay=OPTIM["weight_decay"],
            betas=(OPTIM["b1"], OPTIM["b2"]),
        )
        ordered = sorted(examples, key=lambda e: -len(e.ids))
        self.batches = [
            self._pad(ordered[first : first + rows]) for first in range(0, len(ordered), rows)
        ]

    @staticmethod
    def _pad(examples):
        longest = max(len(e.ids) for e in examples)
        ids = torch.zeros((len(examples), longest), dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, e in enumerate(examples):
            ids[row, : len(e.ids)] = torch.from_numpy(e.ids)
            mask[row, : len(e.ids)] = 1
            labels[row, : len(e.ids)] = torch.from_numpy(np.where(e.trained, e.ids, -100))
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def __call__(self) -> float:
        total = tokens = 0.0
        for batch in self.batches:
            loss = self._model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), OPTIM["clip_norm"])
            self._optim.step()
            self._optim.zero_grad(set_to_none=True)
            count = int((batch["labels"][:, 1:] != -100).sum())
            total, tokens = total + float(loss) * count, tokens + count
        return total / tokens


if __name__ == "__main__":
    main()
