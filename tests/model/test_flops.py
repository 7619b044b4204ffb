"""Operations of a step, against counting them one by one and against XLA's own count."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.flops import PEAKS, peak, step_flops
from mcr_jax.model.shape import PROJECTIONS, DecoderConfig, LoraConfig
from mcr_jax.train.step import loss_sums

SHAPE = DecoderConfig(
    vocab_size=40,
    layers=3,
    width=8,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=10,
)


def counted(c, lengths, trained):
    """Counts every product of every token: a product and a sum are two operations."""
    total = 0
    for length, layer in itertools.product(lengths, range(c.layers)):
        window = c.window if c.is_local(layer) else None
        for query in range(length):
            for name in PROJECTIONS:
                (ins, outs) = c.projection(name)
                weights = len([*itertools.product(*map(range, (*ins, *outs)))])
                # forwards, for the inputs, and unless it is frozen for the weights
                total += 2 * weights * (2 if c.lora else 3)
                if c.lora and name in c.lora.targets:
                    sides = [len([*itertools.product(*map(range, side))]) for side in (ins, outs)]
                    total += 2 * 3 * c.lora.rank * sum(sides)
            for key in range(query + 1):
                if window is None or query - key < window:
                    # scores and outputs, forwards and for both of their inputs
                    total += c.heads * 2 * 3 * 2 * c.head_dim
    return total + trained * c.vocab_size * c.width * 2 * (2 if c.lora else 3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": 3, "local_layers": (True, False, True)},
        {"lora": LoraConfig(rank=2, alpha=4)},
        {"lora": LoraConfig(rank=3, alpha=4, targets=("q", "down"))},
    ],
    ids=["plain", "windows", "adapters", "some adapters"],
)
def test_operations_are_those_counted_one_by_one(changes):
    shape = dataclasses.replace(SHAPE, **changes)
    assert step_flops(shape, [5, 1, 7], 6) == counted(shape, [5, 1, 7], 6)


def test_operations_of_segments_add_up():
    whole = step_flops(SHAPE, [5, 7], 9)
    assert whole == step_flops(SHAPE, [5], 4) + step_flops(SHAPE, [7], 5)
    assert step_flops(SHAPE, [12], 9) > whole  # more pairs see each other in one segment


def test_xla_counts_as_many_for_the_products_with_weights():
    """Takes one layer without a loop; attention over few tokens costs little beside wide layers."""
    shape = dataclasses.replace(
        SHAPE, layers=1, width=128, heads=2, kv_heads=2, head_dim=64,
        mlp_width=512, vocab_size=256,
    )  # fmt: skip
    graph, params = abstract_decoder(shape)
    ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ids)
    batch["weights"] = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    step = jax.grad(lambda params, batch: loss_sums(graph, params, batch)[0])
    xla = jax.jit(step).lower(params, batch).compile().cost_analysis()["flops"]
    assert xla == pytest.approx(step_flops(shape, [64], 64), rel=0.1)


def test_a_peak_is_found_by_the_longest_name():
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("TPU v5 lite") == PEAKS["TPU v5e"] == 197e12
    assert peak("TPU v5p") == peak("TPU v5") == 459e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA GeForce RTX 4090") == 165.2e12
    assert peak("cpu") is None


@pytest.mark.parametrize(
    "kind", ["NVIDIA L40", "NVIDIA A10", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D"]
)
def test_a_device_is_not_taken_for_one_whose_name_it_begins_with(kind):
    assert peak(kind) is None
