"""Layer scores: what a layer is worth, as {its name: number}. One file a family."""

from .conductance import conductance
from .drift import drift
from .routing import routing
from .spectrum import snr
from .total import total

__all__ = ["conductance", "drift", "routing", "snr", "total"]
