"""Small reparametrised deltas, for methods whose trained numbers are no entries of a weight.

Each is a module that is put on a layer (`put`) and changes what goes into it or comes out of it;
`sft.revert` merges it into the layer's own weight and bias, exact to rounding.
"""

from .bases import BASES, Basis, Cosine, Dense, Hadamard, Identity, Rotation
from .heads import HeadOffsets, HeadScales
from .part import Reparametrised
from .placing import merge, parts_of, put, remove
from .rotated import RotatedValues
from .salient_map import SalientMap
from .scale_shift import ScaleShift

__all__ = [
    "BASES",
    "Basis",
    "Cosine",
    "Dense",
    "Hadamard",
    "HeadOffsets",
    "HeadScales",
    "Identity",
    "Reparametrised",
    "RotatedValues",
    "Rotation",
    "SalientMap",
    "ScaleShift",
    "merge",
    "parts_of",
    "put",
    "remove",
]
