"""Attention for training and prefill: one function, three backends.

Every backend computes the same: causal, within segments, in an optional sliding window, grouped
heads, softmax in float32. A named backend that cannot take a call refuses it; only "auto" falls
back, and logs it.

Dimensions: B batch, T tokens, S keys, H query heads, K key heads, G = H / K, D head size.
"""

import functools
import logging

import jax
import jax.numpy as jnp

from mcr_jax.model import blockwise_attention, splash_attention


class BackendError(ValueError):
    """The backend is unknown, or cannot take the call."""


BACKENDS = ("auto", "xla", "cudnn", "splash")


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Causal softmax attention; query head h reads key head h // (H // K).

    `auto` takes splash on a TPU and cudnn on a GPU where they can take the call, else xla. It
    goes by `jax.default_backend()` while tracing, and logs each choice once. Gradients are
    reverse-mode only.

    Args:
      q: [B, T, H, D].
      k, v: [B, T, K, D].
      segment_ids: int [B, T]; a token sees its own segment only, which stands in one piece. None
        is one segment.
      window: a token sees its `window` newest keys, its own included; None is all of them. Static.
      scale: multiplies the scores; None is D**-0.5. Static.
      backend: one of `BACKENDS`.

    Returns:
      [B, T, H, D] in the dtype of `v`.

    Raises:
      BackendError: an unknown backend, or a call that the named one cannot take.
      ValueError: shapes that do not fit.
    """
    B, T, H, D = q.shape
    K = k.shape[2]
    if k.shape != (B, T, K, D) or v.shape != k.shape or H % K:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} are not [B, T, H, D], [B, T, K, D], "
            "[B, T, K, D] with H a multiple of K"
        )
    if segment_ids is not None and segment_ids.shape != (B, T):
        raise ValueError(f"attention: segment_ids {segment_ids.shape} are not [B, T] = {(B, T)}")
    if window is not None and window < 1:
        raise ValueError(f"attention: window {window} is less than 1")
    if backend not in BACKENDS:
        raise BackendError(f"attention backend {backend!r} is none of {', '.join(BACKENDS)}")
    window = None if window is None or window >= T else window
    scale = D**-0.5 if scale is None else scale
    if backend == "auto":
        backend = _choose(q, k, v, segment_ids)
    elif reason := _refusal(backend, q, k, v, segment_ids):
        raise BackendError(f"attention backend {backend!r} cannot do this: {reason}")
    if backend == "splash":
        return splash_attention.attention(q, k, v, segment_ids, window, scale)
    if backend == "cudnn":
        return _library(q, k, v, segment_ids, window, scale, "cudnn")
    return blockwise_attention.attention(window, scale, q, k, v, segment_ids)


def _choose(q, k, v, segment_ids) -> str:
    fast = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend())
    if fast is None:
        _log_once("xla")
    elif reason := _refusal(fast, q, k, v, segment_ids):
        _log_once(f"xla ({fast}: {reason})")
    else:
        _log_once(fast)
        return fast
    return "xla"


@functools.cache
def _log_once(choice: str) -> None:
    logging.getLogger("mcr_jax").info("attention: %s", choice)


def _refusal(backend: str, q, k, v, segment_ids) -> str | None:
    """Returns why the backend cannot take the call; None if it can."""
    if backend == "splash":
        return splash_attention.refusal(q, k, v)
    if backend == "cudnn":
        return _cudnn_refusal(q, k, v, segment_ids)
    return None


def _cudnn_refusal(q, k, v, segment_ids) -> str | None:
    capability = _cuda_capability()
    if capability is None:
        return f"it needs an NVIDIA GPU, not {jax.default_backend()}"
    if capability < (8, 0):
        return f"it needs compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
    if dtypes not in ({"bfloat16"}, {"float16"}):
        return f"it takes bfloat16 or float16, not {' and '.join(sorted(dtypes))}"
    length, size = q.shape[1], q.shape[3]
    largest = 256 if capability >= (9, 0) else 128
    if size % 8 or size > largest:
        return f"its head size is a multiple of 8 up to {largest} on this GPU, not {size}"
    if segment_ids is not None and length % 2:
        return f"with segments it takes an even number of tokens, not {length}"
    return None


def _cuda_capability() -> tuple[int, ...] | None:
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return None
    return tuple(int(part) for part in device.compute_capability.split("."))


def _library(q, k, v, segment_ids, window, scale, implementation: str) -> jax.Array:
    """Calls JAX's own attention.

    Segments need an explicit mask there, which then holds the window, too: cuDNN's own sliding
    window is for calls without a bias.
    """
    mask, local = None, None
    if segment_ids is not None:
        places = jnp.arange(q.shape[1])
        seen = blockwise_attention.visible(places, places, window, segment_ids, segment_ids)
        mask = seen[:, None]
    elif window is not None:
        local = (window - 1, 0)  # keys to the left of the query's own, and to its right
    options = {"mask": mask, "scale": scale, "is_causal": True, "local_window_size": local}
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation, **options)
