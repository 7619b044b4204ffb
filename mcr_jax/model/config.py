"""What a decoder is made of, as a frozen record that doubles as a static argument of jit."""

import dataclasses


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
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      qk_norm: whether queries and keys are normed per head before the rotary turn.
      tied: whether the head is the embedding table.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name in ("vocab_size", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width"):
            if sizes[name] < 1:
                raise ValueError(f"model.{name} must be positive, not {sizes[name]}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kv_heads {self.kv_heads} does not divide heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions pair it up")
