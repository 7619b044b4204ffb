"""A loss that is not finite, or explodes: the run stops and says where and on what."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mcr_jax.errors import McrError
from mcr_jax.workdir import Workdir


class Watch:
    """Looks at the metrics of every step.

    A loss explodes when it is both above twice that of guessing at random, ln(vocabulary), and
    above twice the lowest loss since this call began: no model worth training on is ever there.

    Args:
      workdir: gets diverged.json, which tells of the step that stopped the run.
      vocab_size: ids that the model knows.
    """

    def __init__(self, workdir: Workdir, vocab_size: int):
        self._workdir, self._guessing = workdir, math.log(vocab_size)
        self._lowest = math.inf

    def check_validation(self, step: int, val_loss: float) -> None:
        """Lets a finite loss pass. Raises McrError: the weights after `step` are no good."""
        if not np.isfinite(val_loss):
            raise McrError(
                f"the validation loss after step {step} is {val_loss:.4g}; nothing after the "
                "checkpoint before is kept; try a lower optim.learning_rate in another --workdir"
            )

    def check(
        self,
        step: int,
        metrics: dict[str, float],
        cases: Callable[[], Sequence[str]],
        saved: int | None,
    ) -> None:
        """Lets a sound step pass.

        Args:
          step: that the metrics are of. Its loss is that of the weights before it.
          metrics: its "loss" and "gradient_norm"; the gradient reaches the next weights.
          cases: returns the fingerprints of the cases in its batch.
          saved: step of the newest checkpoint.

        Raises:
          McrError: naming the step, its cases and that checkpoint.
        """
        loss = metrics["loss"]
        unsound = [n for n in ("loss", "gradient_norm") if not np.isfinite(metrics[n])]
        if not unsound and loss > 2 * max(self._guessing, min(self._lowest, loss)):
            unsound = ["loss"]
        self._lowest = min(self._lowest, loss)
        if not unsound:
            return
        value, fingerprints = metrics[unsound[0]], list(cases())
        told = self._workdir.path / "diverged.json"
        facts = {"step": step, "checkpoint": saved, "cases": fingerprints}
        facts |= {name: str(metrics[name]) for name in ("loss", "gradient_norm")}
        self._workdir.write_json(told, facts)
        some = ", ".join(fingerprint[:12] for fingerprint in fingerprints[:3])
        more = f" and {len(fingerprints) - 3} more" if len(fingerprints) > 3 else ""
        if saved is None:
            last = "no checkpoint is kept"
        elif saved == step - 1:
            last = f"the checkpoint of step {saved} holds the weights that failed"
        else:
            last = f"the last good checkpoint is step {saved}"
        raise McrError(
            f"the {unsound[0]} at step {step} is {value:.4g}, on cases {some}{more} ({told}); "
            f"{last}; try a lower optim.learning_rate in another --workdir"
        )
