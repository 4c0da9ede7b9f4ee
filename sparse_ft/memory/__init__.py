"""Memory: what a training step holds. `ledger` measures a model, `estimate` tells it beforehand."""

from .estimate import Estimate, estimate, side_by_side
from .ledger import ledger
from .table import Ledger

__all__ = ["Estimate", "Ledger", "estimate", "ledger", "side_by_side"]
