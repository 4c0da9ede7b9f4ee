"""Memory: what a training step holds. `ledger` measures a model, `estimate` tells it beforehand."""

from .budget import Bytes
from .estimates import Estimate, estimate, side_by_side
from .table import Ledger
from .traffic import Traffic
from .watching import ledger

__all__ = ["Bytes", "Estimate", "Ledger", "Traffic", "estimate", "ledger", "side_by_side"]
