"""Shape of a decoder: a frozen record, also a static argument of jit.

One record covers all of `model.families`. `hf.config_json` reads and writes it as Hugging Face's
config.json.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position frequencies (Su et al., 2021) and their scaling to longer contexts.

    Attributes:
      theta: base of the frequencies theta^(-2i/D).
      scaling: "none"; "linear" divides every frequency by `factor`; "llama3" only those whose
        wavelength is long against `original_length`, with a smooth transition; for "yarn" see
        `Yarn`.
      factor: positive; above 1 it stretches positions.
      low_freq_factor, high_freq_factor: ends of llama3's transition, in wavelengths per
        `original_length`.
      original_length: tokens of the pretraining context, for llama3 and YaRN.
      attention_factor: multiplies cosines and sines, and so the scores by its square.
    """

    attention_factor: ClassVar[float] = 1.0

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if not (self.theta > 0 and math.isfinite(self.theta)):
            raise ValueError(f"rope theta must be positive, not {self.theta}")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"rope factor must be positive, not {self.factor}")
        if self.scaling == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope low_freq_factor {self.low_freq_factor} must be positive and below "
                f"high_freq_factor {self.high_freq_factor}"
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Computes float32 [head_dim / 2], radians per position.

        The order of operations is that of transformers' `modeling_rope_utils`: another rounding
        would turn position 100,000 by a hundredth of a radian.
        """
        frequencies = np.float32(1) / self._powers(head_dim)
        if self.scaling == "linear":
            frequencies = frequencies / np.float32(self.factor)
        if self.scaling == "llama3":
            wavelengths = np.float32(2 * math.pi) / frequencies
            low, high = self.low_freq_factor, self.high_freq_factor
            slow = frequencies / np.float32(self.factor)
            turns = np.float32(self.original_length) / wavelengths
            smooth = (turns - np.float32(low)) / np.float32(high - low)
            between = (1 - smooth) * slow + smooth * frequencies
            frequencies = np.where(turns < low, slow, np.where(turns > high, frequencies, between))
        return frequencies.astype(np.float32)

    def _powers(self, head_dim: int) -> np.ndarray:
        """Computes theta^(2i/D), rounded to float32 once like torch: numpy's is 2 ulp off."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        return (np.float64(self.theta) ** exponents.astype(np.float64)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn(Rope):
    """YaRN (Peng et al., 2023): divides low frequencies by `factor` and keeps high ones.

    Attributes:
      beta_fast: pairs that turn more often than this in `original_length` tokens are unchanged.
      beta_slow: pairs that turn less often are divided by `factor`; between the two is a ramp.
      truncate: whether the ramp's ends are rounded outwards to whole pairs.
    """

    scaling: Literal["yarn"] = "yarn"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.theta > 1:
            raise ValueError(f"rope theta must be above 1 for yarn, not {self.theta}")
        for name in ("beta_fast", "beta_slow", "original_length", "attention_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"rope {name} must be positive, not {getattr(self, name)}")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Computes float32 [head_dim / 2], radians per position; see `Rope.frequencies`."""

        def pair(turns: float) -> float:
            wavelength = self.original_length / (turns * 2 * math.pi)
            return head_dim * math.log(wavelength) / (2 * math.log(self.theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high += 0.001 * (low == high)
        pairs = np.arange(head_dim // 2, dtype=np.float32)
        ramp = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
        powers, kept = self._powers(head_dim), 1 - ramp
        slow = np.float32(1) / (np.float32(self.factor) * powers)
        return (slow * (1 - kept) + np.float32(1) / powers * kept).astype(np.float32)


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021): a target computes W x + scale B A x.

    Attributes:
      rank: columns of A's output, rows of B's input.
      alpha: scale is alpha / rank.
      dropout: share of the low-rank path's inputs that training zeroes.
      targets: which of `PROJECTIONS` have adapters.
      rslora: whether scale is alpha / sqrt(rank) instead (Kalajdzievski, 2023).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS
    rslora: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"lora.rank must be a positive whole number, not {self.rank!r}")
        if not (_is_number(self.alpha) and 0 < self.alpha < math.inf):
            raise ValueError(f"lora.alpha must be a positive number, not {self.alpha!r}")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"lora.dropout must be in [0, 1), not {self.dropout!r}")
        unknown = [name for name in self.targets if name not in PROJECTIONS]
        if unknown or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"lora.targets must be some of {', '.join(PROJECTIONS)}, each once, "
                f"not {self.targets!r}"
            )

    @property
    def scale(self) -> float:
        """Returns the factor of the low-rank update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a pre-norm decoder with rotary positions, grouped heads and a gated MLP.

    Attributes:
      vocab_size: rows of the embedding table.
      layers: number of blocks.
      width: size of the residual stream.
      heads: query heads.
      kv_heads: key and value heads; divides `heads`.
      head_dim: size of a head; even.
      mlp_width: size of the gated hidden layer.
      activation: of the gate: "silu", or "gelu_tanh", GELU in its tanh approximation.
      rope: positions of global layers, which see all tokens before.
      local_rope: positions of local layers, which have a window; None is `rope`.
      window: tokens that a local layer sees, the query's own included; None without local layers.
      local_layers: for each layer whether it is local; () is none.
      norm_eps: added to the mean square in RMSNorm.
      norm_offset: added to every norm's scale; 1 where scales are stored around zero.
      qk_norm: whether queries and keys are normed per head before the rotary embedding.
      qkv_bias: whether queries, keys and values have a bias.
      sandwich_norm: whether outputs of attention and MLP are normed, too, before the residual sum.
      embedding_scale: multiplies the embeddings.
      attention_scale: multiplies the scores; None is head_dim^-0.5.
      tied: whether the head is the embedding table.
      dtype: of the parameters.
      attention: backend of `model.attention`; "auto" takes the device's best.
      remat: rematerialization in the backward pass: "none"; "dots" stores products with weights
        only; "full" stores the layer's input only.
      lora: adapters beside the layers' weights, which `model.lora` adds and merges; None is none.
      source: text of the config.json this was read from, which `hf.save` writes again.
      folder: of that file; `hf.save` copies its tokenizer.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    activation: Literal["silu", "gelu_tanh"] = "silu"
    rope: Rope = Rope()
    local_rope: Rope | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    qk_norm: bool = False
    qkv_bias: bool = False
    sandwich_norm: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    tied: bool = True
    dtype: str = "float32"
    attention: str = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    lora: LoraConfig | None = None
    source: str = dataclasses.field(default="", compare=False, repr=False)
    folder: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width"):
            size = getattr(self, name)
            if size < 1:
                raise ValueError(f"model.{name} must be positive, not {size}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kv_heads {self.kv_heads} does not divide heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions pair it up")
        if self.local_layers and len(self.local_layers) != self.layers:
            raise ValueError(
                f"model.local_layers lists {len(self.local_layers)} layers, not {self.layers}"
            )
        if any(self.local_layers) and (self.window is None or self.window < 1):
            raise ValueError(f"model.window must be positive for local layers, not {self.window}")
        for name in self.lora.targets if self.lora else ():
            sides = [math.prod(side) for side in self.projection(name)]
            if self.lora.rank > min(sides):
                raise ValueError(
                    f"lora.rank {self.lora.rank} is larger than a side of {name}, which is "
                    f"{sides[0]} x {sides[1]}"
                )

    def is_local(self, layer: int) -> bool:
        """Returns whether a layer sees its window only."""
        return bool(self.local_layers) and self.local_layers[layer]

    def projection(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns input and output shape of one of `PROJECTIONS`; its weight is [*in, *out]."""
        if name in ("gate", "up"):
            return (self.width,), (self.mlp_width,)
        if name == "down":
            return (self.mlp_width,), (self.width,)
        heads = (self.heads if name in ("q", "o") else self.kv_heads, self.head_dim)
        return (heads, (self.width,)) if name == "o" else ((self.width,), heads)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
