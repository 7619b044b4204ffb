"""Attention is a softmax over what a token may see, whichever backend computes it."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quick import quick

from mcr_jax.model import attention as module
from mcr_jax.model import blockwise_attention, splash_attention
from mcr_jax.model.attention import BACKENDS, attention
from mcr_jax.model.sharding import make_mesh

compiled = functools.partial(jax.jit, static_argnames=("window", "scale"))
xla = compiled(functools.partial(attention, backend="xla"))


@compiled
def splash(q, k, v, *, segment_ids=None, window=None, scale=None):
    """Runs the TPU kernel in its interpreter."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return splash_attention.attention(q, k, v, segment_ids, window, scale, interpret=True)


@compiled
def library(q, k, v, *, segment_ids=None, window=None, scale=None):
    """Computes a call of cuDNN by the XLA implementation of the same function."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return module._library(q, k, v, segment_ids, window, scale, "xla")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(B, T, H, K, D):
    return normal(0, B, T, H, D), normal(1, B, T, K, D), normal(2, B, T, K, D)


def packed(B, T, segments=3):
    """Draws segment ids of rows in which every segment is one run of tokens."""
    return np.sort(np.random.default_rng(3).integers(0, segments, (B, T)), axis=1)


def reference(q, k, v, *, segment_ids=None, window=None, scale=None):
    """Computes attention over the keys each query may see, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    scores = np.einsum("bqhd,bshd->bhqs", q, k.repeat(group, axis=2))
    scores *= q.shape[3] ** -0.5 if scale is None else scale
    back = np.arange(T)[:, None] - np.arange(T)
    seen = (back >= 0) & (back < (T if window is None else window))
    if segment_ids is not None:
        seen = (seen & (segment_ids[:, :, None] == segment_ids[:, None, :]))[:, None]
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqs,bshd->bqhd", weights, v.repeat(group, axis=2))


def gradients(attend, q, k, v):
    return jax.jit(jax.grad(lambda *qkv: jnp.sin(attend(*qkv)).sum(), (0, 1, 2)))(q, k, v)


def assert_alike(got, expected, atol=2e-5):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


# A length of one block, and of several with a short last one.
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("T", [7, 2 * blockwise_attention.BLOCK + 3])
def test_xla_is_the_softmax_over_what_a_token_may_see(T, heads, segmented, window):
    q, k, v = inputs(2, T, *heads, 6)
    asked = {"segment_ids": packed(2, T) if segmented else None, "window": window, "scale": 0.3}
    assert_alike(xla(q, k, v, **asked), reference(q, k, v, **asked), atol=5e-6)


@pytest.mark.parametrize("window", [None, 3, 40])
@pytest.mark.parametrize("segmented", [False, True])
def test_what_cudnn_is_asked_for_is_the_same_attention(segmented, window):
    q, k, v = inputs(2, 50, 4, 2, 8)
    asked = {"segment_ids": packed(2, 50) if segmented else None, "window": window, "scale": 0.3}
    assert_alike(library(q, k, v, **asked), reference(q, k, v, **asked))


@pytest.mark.parametrize(
    ("shape", "segmented", "window"),
    [
        ((2, 128, 2, 2, 8), False, None),
        ((1, 130, 4, 2, 8), True, None),
        ((1, 260, 2, 1, 8), False, 100),
        ((1, 130, 2, 1, 136), True, 7),
    ],
)
def test_splash_and_its_gradients_are_those_of_xla(shape, segmented, window):
    q, k, v = inputs(*shape)
    segment_ids = packed(*shape[:2]) if segmented else None
    asked = {"segment_ids": segment_ids, "window": window, "scale": 0.2}
    assert_alike(splash(q, k, v, **asked), reference(q, k, v, **asked))
    splash_gradients = gradients(functools.partial(splash, **asked), q, k, v)
    assert_alike(splash_gradients, gradients(functools.partial(xla, **asked), q, k, v), atol=5e-5)


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("segmented", [False, True])
def test_gradients_are_those_of_a_plain_softmax(segmented, window):
    T = 2 * blockwise_attention.BLOCK + 3
    q, k, v = inputs(1, T, 4, 2, 6)
    asked = {"segment_ids": packed(1, T) if segmented else None, "window": window}
    got = gradients(functools.partial(xla, **asked), q, k, v)
    assert_alike(got, gradients(functools.partial(library, **asked), q, k, v))


@pytest.mark.parametrize("attend", [xla, splash, library])
def test_no_output_depends_on_a_later_token(attend):
    T = blockwise_attention.BLOCK + 6
    q, k, v = inputs(1, T, 2, 1, 4)
    for at in (0, 3, T - 2):
        _, dk, dv = jax.jit(jax.grad(lambda *x, at=at: attend(*x)[:, at].sum(), (0, 1, 2)))(q, k, v)
        assert not np.any(dk[:, at + 1 :]) and not np.any(dv[:, at + 1 :])
        assert np.all(np.any(dv[:, : at + 1], axis=(0, 2, 3)))


@pytest.mark.parametrize("attend", [xla, splash, library])
@pytest.mark.parametrize("window", [None, 9])
def test_packed_segments_are_what_they_would_be_in_rows_of_their_own(attend, window):
    lengths = (70, 3, 57)
    q, k, v = inputs(1, sum(lengths), 2, 1, 4)
    segment_ids = np.repeat([4, 0, 7], lengths)[None]
    together = attend(q, k, v, segment_ids=segment_ids, window=window)
    ends = np.cumsum(lengths)
    for start, end in zip((0, *ends), ends, strict=False):
        alone = attend(*(x[:, start:end] for x in (q, k, v)), window=window)
        np.testing.assert_allclose(together[:, start:end], alone, atol=1e-5)


@pytest.mark.parametrize("attend", [xla, splash, library])
def test_a_window_of_one_sees_the_token_itself(attend):
    q, k, v = inputs(1, 9, 4, 2, 4)
    np.testing.assert_allclose(attend(q, k, v, window=1), v.repeat(2, axis=2), atol=1e-6)


@pytest.mark.parametrize("window", [9, 10, 1000])
def test_a_window_as_long_as_the_row_is_no_window(window):
    q, k, v = inputs(1, 9, 4, 2, 4)
    np.testing.assert_array_equal(xla(q, k, v, window=window), xla(q, k, v))


def test_keys_before_every_window_of_a_block_are_not_read():
    S, window = blockwise_attention.BLOCK, 10
    firsts = blockwise_attention.first_blocks(8 * S, window, None)
    np.testing.assert_array_equal(firsts, [0, 0, 1, 2, 3, 4, 5, 6])


def test_keys_before_the_segments_of_a_block_in_every_row_are_not_read():
    S = blockwise_attention.BLOCK
    rows = np.stack([np.repeat([5, 2, 0], n) for n in ([2 * S, S, S], [3 * S + 1, S - 2, 1])])
    np.testing.assert_array_equal(
        blockwise_attention.first_blocks(4 * S, None, rows[:1]), [0, 0, 2, 3]
    )
    np.testing.assert_array_equal(blockwise_attention.first_blocks(4 * S, None, rows), [0, 0, 0, 0])
    np.testing.assert_array_equal(blockwise_attention.first_blocks(4 * S, S, rows), [0, 0, 1, 2])


@pytest.mark.parametrize("attend", [xla, splash])
def test_bfloat16_in_is_bfloat16_out_with_a_float32_softmax(attend):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(1, 150, 2, 1, 8))
    got = attend(q, k, v, scale=0.25)  # a power of two: the scale rounds nothing
    assert got.dtype == jnp.bfloat16
    # Half a unit in the last place of the weights and of the result, and no more.
    np.testing.assert_allclose(
        np.float64(got), reference(q, k, v, scale=0.25), atol=2**-8 * np.abs(np.float64(v)).max()
    )


def test_large_scores_stay_finite_and_exact_forwards_and_backwards():
    q, k, v = inputs(1, 5, 2, 1, 4)
    q, k = 1e4 * q, 1e4 * k
    assert_alike(xla(q, k, v), reference(q, k, v))
    got = gradients(xla, q, k, v)
    assert all(np.isfinite(x).all() for x in got)
    assert_alike(got[2], gradients(library, q, k, v)[2])


def test_layers_with_different_windows_may_be_branches_of_one_scan():
    q, k, v = inputs(1, 12, 2, 1, 4)
    branches = [functools.partial(xla, window=w) for w in (None, 3)]

    def layers(q, k, v):
        def layer(x, which):
            return jax.lax.switch(which, branches, x, k, v), None

        return jax.lax.scan(layer, q, jnp.array([0, 1, 1]))[0]

    def unrolled(q, k, v):
        return branches[1](branches[1](branches[0](q, k, v), k, v), k, v)

    assert_alike(jax.jit(layers)(q, k, v), unrolled(q, k, v))
    assert_alike(gradients(layers, q, k, v), gradients(unrolled, q, k, v))


# Rows and heads that the axes divide; one key head for two shards of heads; rows that only one
# axis divides; heads that no axis divides; three key heads whose cuts do not meet the shards'.
@pytest.mark.parametrize(
    ("attend", "shape"),
    quick(
        2,
        [
            (xla, (4, 70, 4, 2, 8)),
            (splash, (1, 70, 6, 3, 8)),
            (splash, (4, 70, 4, 2, 8)),
            (splash, (2, 70, 4, 1, 8)),
            (splash, (3, 70, 3, 3, 8)),
        ],
    ),
)
def test_a_mesh_changes_nothing(attend, shape):
    mesh = make_mesh(2, 2, 2)
    q, k, v = inputs(*shape)
    asked = {"segment_ids": packed(*shape[:2]), "window": 20}
    attend = functools.partial(attend, **asked)
    expected = reference(q, k, v, **asked), gradients(functools.partial(library, **asked), q, k, v)
    if shape[0] % 4 == 0:
        spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
        q, k, v = (jax.device_put(x, spec) for x in (q, k, v))
    with jax.set_mesh(mesh):
        got = jax.jit(attend)(q, k, v), gradients(attend, q, k, v)
    assert_alike(got, expected)


def test_splash_lowers_for_a_tpu_forwards_and_backwards():
    q, k = (jax.ShapeDtypeStruct((1, 200, heads, 64), jnp.bfloat16) for heads in (4, 2))

    def total(q, k, v):
        return splash_attention.attention(q, k, v, None, 100, 0.125).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 3


def test_an_unknown_backend_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match="'flash' is none of " + ", ".join(BACKENDS)):
        attention(*inputs(1, 3, 2, 1, 4), backend="flash")


@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_a_backend_without_its_device_refuses_by_name(backend):
    with pytest.raises(ValueError, match=f"'{backend}' cannot do this: it needs .*, not cpu"):
        attention(*inputs(1, 3, 2, 1, 4), backend=backend)


@pytest.mark.parametrize(
    ("capability", "dtype", "shape", "segmented", "reason"),
    [
        ((7, 5), "bfloat16", (1, 4, 2, 1, 8), False, "compute capability 8.0, this GPU has 7.5"),
        ((9, 0), "float32", (1, 4, 2, 1, 8), False, "takes bfloat16 or float16, not float32"),
        ((9, 0), "bfloat16", (1, 4, 2, 1, 12), False, "multiple of 8 up to 256 on this GPU"),
        ((8, 0), "bfloat16", (1, 4, 2, 1, 256), False, "multiple of 8 up to 128 on this GPU"),
        ((9, 0), "bfloat16", (1, 5, 2, 1, 8), True, "even number of tokens, not 5"),
    ],
)
def test_cudnn_refuses_what_it_cannot_do(monkeypatch, capability, dtype, shape, segmented, reason):
    monkeypatch.setattr(module, "_cuda_capability", lambda: capability)
    q, k, v = (jnp.asarray(x, dtype) for x in inputs(*shape))
    segment_ids = packed(*shape[:2]) if segmented else None
    with pytest.raises(ValueError, match=f"'cudnn' cannot do this: .*{reason}"):
        attention(q, k, v, segment_ids=segment_ids, backend="cudnn")


def test_splash_refuses_a_dtype_of_gpus_and_devices_without_a_mesh(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    q, k, v = inputs(1, 4, 2, 1, 8)
    with pytest.raises(ValueError, match=r"'splash' cannot do this: it takes .*, not float16"):
        attention(*(jnp.asarray(x, "float16") for x in (q, k, v)), backend="splash")
    with pytest.raises(ValueError, match=r"'splash' cannot do this: .* needs a mesh"):
        attention(q, k, v, backend="splash")


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "said"),
    [
        ("cpu", None, "bfloat16", "xla"),
        ("gpu", (9, 0), "bfloat16", "cudnn"),
        ("gpu", (9, 0), "float32", "xla (cudnn: it takes bfloat16 or float16, not float32)"),
        ("gpu", None, "bfloat16", "xla (cudnn: it needs an NVIDIA GPU, not gpu)"),
        ("tpu", None, "bfloat16", "splash"),
        ("tpu", None, "float16", "xla (splash: it takes bfloat16 or float32, not float16)"),
    ],
)
def test_auto_says_its_choice_once(monkeypatch, caplog, platform, capability, dtype, said):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(module, "_cuda_capability", lambda: capability)
    used = []
    for name, owner, function in [
        ("xla", blockwise_attention, "attention"),
        ("splash", splash_attention, "attention"),
        ("cudnn", module, "_library"),
    ]:
        monkeypatch.setattr(owner, function, lambda *_, name=name: used.append(name))
    module._log_once.cache_clear()
    q, k, v = (jnp.asarray(x, dtype) for x in inputs(1, 4, 2, 1, 8))
    with caplog.at_level(logging.INFO, logger="mcr_jax"):
        attention(q, k, v)
        attention(q, k, v)
    assert [record.message for record in caplog.records] == [f"attention: {said}"]
    assert used == [said.split()[0]] * 2
    module._log_once.cache_clear()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"window": 0}, "window 0 is less than 1"),
        ({"segment_ids": np.zeros((1, 4), int)}, r"segment_ids \(1, 4\) are not \[B, T\]"),
        ({"k": normal(1, 1, 5, 3, 4), "v": normal(1, 1, 5, 3, 4)}, "H a multiple of K"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    q, k, v = inputs(1, 5, 4, 2, 4)
    with pytest.raises(ValueError, match=sentence):
        attention(**({"q": q, "k": k, "v": v} | change))
