"""Quantised bases: selected entries in full precision over linear layers in 4 or 8 bits, of
bitsandbytes and torchao, or of your own (`Quantiser`).
"""

from ..matrices import PACKED
from . import quantisers  # noqa: F401  (each registers itself)
from .module import Quantised, shape_of
from .quantiser import Quantiser, quantiser_of
from .starting import start_from

PACKED.append(shape_of)

__all__ = ["Quantised", "Quantiser", "quantiser_of", "start_from"]
