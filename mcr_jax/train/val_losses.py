"""History of validation losses: the lowest one and early stopping."""

import math
from collections.abc import Iterable


class ValLosses:
    """Validation losses of a run, in the order of their steps.

    Attributes:
      history: (step, loss in nats per trained token) of each evaluation.
    """

    def __init__(self, history: Iterable[tuple[int, float]] = (), patience: int = 0):
        """Starts from the evaluations of a checkpoint; `patience` is config.train.patience."""
        self.history, self._patience = list(history), patience

    def __contains__(self, step: int) -> bool:
        return any(step == measured for measured, _ in self.history)

    def add(self, step: int, loss: float) -> bool:
        """Adds an evaluation. Returns whether its loss is lower than all before."""
        lowest = loss < min((before for _, before in self.history), default=math.inf)
        self.history.append((step, loss))
        return lowest

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest loss, the earlier of equal ones; None without evaluations."""
        return min(self.history, key=lambda measured: measured[1], default=None)

    @property
    def stale(self) -> bool:
        """True if the last `patience` losses are no lower than the best before; never for 0."""
        losses, patience = [loss for _, loss in self.history], self._patience
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])
