"""Attention over a shared prompt and over an answer, merged, equals attention over both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcr_jax.generate.engine import _tpu, decode_attention
from mcr_jax.generate.engine.decode_attention import Kept, Layer

# Five slots on three prompts of four places, the fourth idle; one slot writes nothing.
PROMPT, RANK = np.array([2, 0, 2, 0, 1]), np.array([1, 0, 0, 2, 0])
ALIVE = np.array([True, True, True, True, False])
LENGTHS = np.array([5, 3, 7, 0]), np.array([1, 4, 6, 2, 1])  # of prompts, of answers
RANKS, H, K = 3, 4, 2


def kept_of(rng, count: int, places: int, size: int, lengths, dtype="float32"):
    """Returns random keys or values, with large finite values beyond the end of each sequence."""
    x = rng.normal(size=(count, K, places, size))
    for row, length in zip(x, lengths, strict=True):
        row[:, length:] = 1e3
    return x.astype(dtype)


def reference(q, prompt, own, window, scale, lengths=LENGTHS):
    """Computes attention in float64, one slot and one head at a time, over all keys at once."""
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[:2]):
        p, k = PROMPT[b], h // (H // K)
        keys, values = (
            np.concatenate([a[p, k, : lengths[0][p]], o[b, k, : lengths[1][b]]]).astype(float)
            for a, o in zip(prompt, own, strict=True)
        )
        scores = keys @ q[b, h].astype(float) * scale
        if window is not None:
            scores[:-window] = -np.inf
        weights = np.exp(scores - scores.max())
        out[b, h] = weights / weights.sum() @ values
    return out


def inputs(size=16, places=(8, 8), dtype="float32", lengths=LENGTHS):
    rng = np.random.default_rng(0)
    prompt = [kept_of(rng, 4, places[0], size, lengths[0], dtype) for _ in range(2)]
    own = [kept_of(rng, 5, places[1], size, lengths[1], dtype) for _ in range(2)]
    return rng.normal(size=(5, H, size)).astype(dtype), prompt, own


def attended(q, prompt, own, *, window=None, kernel="xla", kv="same", lengths=LENGTHS):
    def kept(x):
        if kv == "int8":
            like = Kept(jnp.zeros(x.shape, jnp.int8), jnp.zeros(x.shape[:-1]))
            return decode_attention.keep(jnp.asarray(x), like)
        return Kept(jnp.asarray(x), None)

    def keys(x):
        x = kept(x)
        if kernel != "xla":
            return x
        *_, places, size = x.values.shape
        strip = decode_attention.strip_of(min(places, decode_attention.BLOCK))
        strips = x.values.reshape(*x.values.shape[:2], places // strip, strip, size)
        return x._replace(values=strips.swapaxes(3, 4))

    layer = Layer(keys(prompt[0]), kept(prompt[1]), keys(own[0]), kept(own[1]))
    at = decode_attention.places(*map(jnp.asarray, (PROMPT, RANK, ALIVE, *lengths)), RANKS)
    attend = jax.jit(decode_attention.attention, static_argnames=("window", "scale", "kernel"))
    return np.asarray(attend(jnp.asarray(q), layer, at, window=window, scale=0.3, kernel=kernel))


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize(  # several blocks and one block, of several strips and of one strip
    ("block", "strip"), [(4, 2), (4, 64), (512, 2), (512, 64)]
)
@pytest.mark.parametrize("tile", [3, 4])  # two overlapping tiles of prompts, or one tile
def test_it_equals_attention_over_all_keys_at_once(monkeypatch, tile, block, strip, window):
    monkeypatch.setattr(decode_attention, "BLOCK", block)
    monkeypatch.setattr(decode_attention, "STRIP", strip)
    monkeypatch.setattr(decode_attention, "TILE", tile)
    q, prompt, own = inputs()
    expected = reference(q, prompt, own, window, 0.3)
    got = attended(q, prompt, own, window=window)
    np.testing.assert_allclose(got[ALIVE], expected[ALIVE], atol=3e-6)
    assert np.isfinite(got).all()


def test_blocks_beyond_the_longest_sequence_change_no_bit(monkeypatch):
    monkeypatch.setattr(decode_attention, "BLOCK", 4)
    q, prompt, own = inputs()
    wider = [np.concatenate([x, np.full_like(x, 7.0)], axis=2) for x in (*prompt, *own)]
    one, two = attended(q, prompt, own), attended(q, wider[:2], wider[2:])
    np.testing.assert_array_equal(one, two)


def test_blocks_before_every_window_are_not_read(monkeypatch):
    """Prompts before every window are not read either: a NaN there would reach the output."""
    monkeypatch.setattr(decode_attention, "BLOCK", 4)
    monkeypatch.setattr(decode_attention, "TILE", 3)
    lengths = LENGTHS[0], np.array([7, 8, 8, 7, 8])
    q, prompt, own = inputs(lengths=lengths)
    expected = reference(q, prompt, own, 3, 0.3, lengths)
    for x in (*prompt, *own):
        x[:, :, :4] = np.nan
    got = attended(q, prompt, own, window=3, lengths=lengths)
    np.testing.assert_allclose(got[ALIVE], expected[ALIVE], atol=3e-6)


def test_keys_and_values_of_eight_bits_are_close():
    q, prompt, own = inputs()
    got = attended(q, prompt, own, kv="int8")
    expected = reference(q, prompt, own, None, 0.3)
    difference = np.abs(got - expected)[ALIVE]
    assert 1e-5 < difference.max() < 0.03  # of values around 1, in steps of about 1/40


@pytest.mark.parametrize("kernel", ["gpu-interpret", "gpu-32-interpret"])
def test_the_gpu_kernel_computes_the_same(kernel):
    """Runs in Pallas' interpreter, in bfloat16 as on a GPU, with two or eight blocks a sequence."""
    q, prompt, own = inputs(size=16, places=(256, 256), dtype=jnp.bfloat16)
    got = attended(q, prompt, own, kernel=kernel)
    same = attended(q, prompt, own)
    expected = reference(
        np.float32(q), *([np.float32(x) for x in y] for y in (prompt, own)), None, 0.3
    )
    np.testing.assert_allclose(np.float32(got)[ALIVE], expected[ALIVE], atol=0.02)
    np.testing.assert_allclose(np.float32(got)[ALIVE], np.float32(same)[ALIVE], atol=0.02)


@pytest.mark.parametrize("window", [None, 3, 200])
@pytest.mark.parametrize("kv", ["same", "int8"])
def test_the_tpu_kernel_computes_the_same(monkeypatch, kv, window):
    """Runs in Pallas' interpreter, with two blocks a sequence; one block may be invisible."""
    monkeypatch.setattr(_tpu, "BLOCKS", (128,))
    lengths = np.array([5, 3, 200, 0]), np.array([1, 140, 6, 129, 1])
    q, prompt, own = inputs(size=128, places=(256, 256), lengths=lengths)
    arguments = {"window": window, "kv": kv, "lengths": lengths}
    got = attended(q, prompt, own, kernel="tpu-interpret", **arguments)
    assert np.isfinite(got).all()
    same = attended(q, prompt, own, **arguments)
    np.testing.assert_allclose(got[ALIVE], same[ALIVE], atol=1e-5)
    expected = reference(q, prompt, own, window, 0.3, lengths)
    np.testing.assert_allclose(got[ALIVE], expected[ALIVE], atol=1e-5 if kv == "same" else 0.1)


def test_the_tpu_kernel_reads_visible_blocks_only():
    ends, begins = np.array([0, 300, 128, 512]), np.array([[2**30], [200], [-5], [500]])
    sequence, place, count = _tpu._programs(jnp.asarray(begins), jnp.asarray(ends), 4, 128)
    assert sequence[:count].tolist() == [0, 1, 1, 2, 3]
    assert place[1:count].tolist() == [1, 2, 0, 3]
    sequence, place, count = _tpu._programs(None, jnp.asarray(ends), 4, 128)
    assert sequence[:count].tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3]
    assert place[1:count].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("kept", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("window", [None, 200])
def test_the_tpu_kernel_lowers_for_a_tpu(window, kept):
    def of(n):
        scale = jax.ShapeDtypeStruct((n, K, 256), jnp.float32) if kept == "int8" else None
        return Kept(jax.ShapeDtypeStruct((n, K, 256, 128), kept), scale)

    layer = Layer(of(4), of(4), of(5), of(5))
    at = decode_attention.places(*map(jnp.asarray, (PROMPT, RANK, ALIVE, *LENGTHS)), RANKS)
    q = jax.ShapeDtypeStruct((5, H, 128), "float32" if kept == "float32" else "bfloat16")

    def attend(q, layer):
        return decode_attention.attention(q, layer, at, window=window, scale=0.3, kernel="tpu")

    lowered = jax.jit(attend).trace(q, layer).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpu", "float32", "bfloat16", None, 64), "float32 arithmetic"),
        (("gpu", "float16", "float16", None, 64), "float16 arithmetic"),
        (("gpu", "bfloat16", "int8", None, 64), "int8 keys and values"),
        (("gpu", "bfloat16", "float32", None, 64), "float32 keys and values"),
        (("gpu", "bfloat16", "bfloat16", 8, 64), "sliding window"),
        (("gpu", "bfloat16", "bfloat16", None, 80), "head size of 80"),
        (("gpu", "bfloat16", "bfloat16", None, 128), None),
        (("tpu", "float16", "float16", None, 128), "float16 arithmetic"),
        (("tpu", "bfloat16", "float16", None, 128), "float16 keys and values"),
        (("tpu", "bfloat16", "bfloat16", None, 64), "head size of 64"),
        (("tpu", "bfloat16", "int8", 8, 256), None),
        (("xla", "float16", "float16", 8, 80), None),
    ],
)
def test_a_kernel_names_the_argument_that_it_does_not_support(arguments, says):
    reason = decode_attention.refusal(*arguments)
    assert reason is None if says is None else says in reason
