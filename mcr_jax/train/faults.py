"""Divergence checks: a run stops at a loss that is not finite or explodes."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mcr_jax.errors import McrError
from mcr_jax.workdir import Workdir


class Watch:
    """Checks the metrics of every step.

    A loss explodes if it is more than twice the loss of a uniform guess, ln(vocab_size), and more
    than twice the lowest loss since this call began.

    Args:
      workdir: receives diverged.json, which describes the step that stopped the run.
      vocab_size: of the model.
    """

    def __init__(self, workdir: Workdir, vocab_size: int):
        self._workdir, self._uniform_loss = workdir, math.log(vocab_size)
        self._lowest = math.inf

    def check_validation(self, step: int, val_loss: float) -> None:
        """Raises McrError if the validation loss after `step` is not finite."""
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
        """Raises McrError, naming the step, its cases and the last checkpoint, if it diverged.

        Args:
          step: of the metrics; its loss is that of the weights before the step.
          metrics: with "loss" and "gradient_norm".
          cases: returns the fingerprints of the cases in the step's batch.
          saved: step of the newest checkpoint; None without one.
        """
        loss = metrics["loss"]
        faulty = [n for n in ("loss", "gradient_norm") if not np.isfinite(metrics[n])]
        if not faulty and loss > 2 * max(self._uniform_loss, min(self._lowest, loss)):
            faulty = ["loss"]
        self._lowest = min(self._lowest, loss)
        if not faulty:
            return
        value, fingerprints = metrics[faulty[0]], list(cases())
        report = self._workdir.path / "diverged.json"
        facts = {"step": step, "checkpoint": saved, "cases": fingerprints}
        facts |= {name: str(metrics[name]) for name in ("loss", "gradient_norm")}
        self._workdir.write_json(report, facts)
        some = ", ".join(fingerprint[:12] for fingerprint in fingerprints[:3])
        more = f" and {len(fingerprints) - 3} more" if len(fingerprints) > 3 else ""
        if saved is None:
            last = "no checkpoint is kept"
        elif saved == step - 1:
            last = f"the checkpoint of step {saved} holds the weights that failed"
        else:
            last = f"the last good checkpoint is step {saved}"
        raise McrError(
            f"the {faulty[0]} at step {step} is {value:.4g}, on cases {some}{more} ({report}); "
            f"{last}; try a lower optim.learning_rate in another --workdir"
        )
