"""Two parts of a softmax make the whole: what is shared is read once and counted right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcr_jax.generate.engine import attention as decoding
from mcr_jax.generate.engine.attention import Kept, Layer

# Five slots on three prompts of four places, the fourth idle; one slot writes nothing.
PROMPT, RANK = np.array([2, 0, 2, 0, 1]), np.array([1, 0, 0, 2, 0])
ALIVE = np.array([True, True, True, True, False])
PROMPT_LENGTHS, LENGTHS = np.array([5, 3, 7, 0]), np.array([1, 4, 6, 2, 1])
RANKS, H, K = 3, 4, 2


def kept_of(rng, count: int, places: int, size: int, lengths, dtype="float32"):
    """Random keys or values, with what no sequence has got to poisoned but finite."""
    x = rng.normal(size=(count, K, places, size))
    for row, length in zip(x, lengths, strict=True):
        row[:, length:] = 1e3
    return x.astype(dtype)


def reference(q, prompt, own, window, scale):
    """float64, one slot and one head at a time, over all keys in a row."""
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[:2]):
        p, k = PROMPT[b], h // (H // K)
        keys, values = (
            np.concatenate([a[p, k, : PROMPT_LENGTHS[p]], o[b, k, : LENGTHS[b]]]).astype(float)
            for a, o in zip(prompt, own, strict=True)
        )
        scores = keys @ q[b, h].astype(float) * scale
        if window is not None:
            scores[:-window] = -np.inf
        weights = np.exp(scores - scores.max())
        out[b, h] = weights / weights.sum() @ values
    return out


def made(size=16, places=(8, 8), dtype="float32"):
    rng = np.random.default_rng(0)
    prompt = [kept_of(rng, 4, places[0], size, PROMPT_LENGTHS, dtype) for _ in range(2)]
    own = [kept_of(rng, 5, places[1], size, LENGTHS, dtype) for _ in range(2)]
    return rng.normal(size=(5, H, size)).astype(dtype), prompt, own


def attended(q, prompt, own, *, window=None, scale=0.3, kernel="xla", kv="same"):
    def kept(x):
        if kv == "int8":
            like = Kept(jnp.zeros(x.shape, jnp.int8), jnp.zeros(x.shape[:-1]))
            return decoding.keep(jnp.asarray(x), like)
        return Kept(jnp.asarray(x), None)

    def keys(x):
        x = kept(x)
        if kernel != "xla":
            return x
        *_, places, size = x.values.shape
        strip = decoding.strip_of(min(places, decoding.BLOCK))
        strips = x.values.reshape(*x.values.shape[:2], places // strip, strip, size)
        return x._replace(values=strips.swapaxes(3, 4))

    layer = Layer(keys(prompt[0]), kept(prompt[1]), keys(own[0]), kept(own[1]))
    at = decoding.places(*map(jnp.asarray, (PROMPT, RANK, ALIVE, PROMPT_LENGTHS, LENGTHS)), RANKS)
    attend = jax.jit(decoding.attention, static_argnames=("window", "scale", "kernel"))
    return np.asarray(attend(jnp.asarray(q), layer, at, window=window, scale=scale, kernel=kernel))


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize(  # blocks that are read one by one, and one block; of strips, and of one
    ("block", "strip"), [(4, 2), (4, 64), (512, 2), (512, 64)]
)
@pytest.mark.parametrize("tile", [3, 4])  # prompts read by threes, with some read twice, at once
def test_it_equals_attention_over_all_keys_in_a_row(monkeypatch, tile, block, strip, window):
    monkeypatch.setattr(decoding, "BLOCK", block)
    monkeypatch.setattr(decoding, "STRIP", strip)
    monkeypatch.setattr(decoding, "TILE", tile)
    q, prompt, own = made()
    expected = reference(q, prompt, own, window, 0.3)
    got = attended(q, prompt, own, window=window)
    np.testing.assert_allclose(got[ALIVE], expected[ALIVE], atol=3e-6)
    assert np.isfinite(got).all()


def test_blocks_beyond_the_longest_sequence_change_no_bit(monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK", 4)
    q, prompt, own = made()
    wider = [np.concatenate([x, np.full_like(x, 7.0)], axis=2) for x in (*prompt, *own)]
    one, two = attended(q, prompt, own), attended(q, wider[:2], wider[2:])
    np.testing.assert_array_equal(one, two)


def test_keys_and_values_of_eight_bits_are_close():
    q, prompt, own = made()
    got = attended(q, prompt, own, kv="int8")
    expected = reference(q, prompt, own, None, 0.3)
    difference = np.abs(got - expected)[ALIVE]
    assert 1e-5 < difference.max() < 0.03  # of values around 1, in steps of about 1/40


def test_the_gpu_kernel_computes_the_same():
    """In pallas' interpreter; bfloat16 as on a GPU, two blocks to a sequence."""
    q, prompt, own = made(size=16, places=(256, 256), dtype=jnp.bfloat16)
    got = attended(q, prompt, own, kernel="interpret")
    same = attended(q, prompt, own)
    expected = reference(
        np.float32(q), *([np.float32(x) for x in y] for y in (prompt, own)), None, 0.3
    )
    np.testing.assert_allclose(np.float32(got)[ALIVE], expected[ALIVE], atol=0.02)
    np.testing.assert_allclose(np.float32(got)[ALIVE], np.float32(same)[ALIVE], atol=0.02)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("float32", "bfloat16", None, 64), "float32 arithmetic"),
        (("float16", "float16", None, 64), "float16 arithmetic"),
        (("bfloat16", "int8", None, 64), "int8 keys and values"),
        (("bfloat16", "float32", None, 64), "float32 keys and values"),
        (("bfloat16", "bfloat16", 8, 64), "sliding window"),
        (("bfloat16", "bfloat16", None, 80), "head size of 80"),
        (("bfloat16", "bfloat16", None, 128), None),
    ],
)
def test_what_the_gpu_kernel_cannot_do_it_says(asked, says):
    dtype, kept, window, size = asked
    reason = decoding.refusal(dtype, kept, window, size)
    assert reason is None if says is None else says in reason
