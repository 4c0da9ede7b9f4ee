"""Memory: what a training step holds. `ledger` measures a model, `estimate` tells it beforehand."""

from .ledger import ledger
from .table import Ledger

__all__ = ["Ledger", "ledger"]
