"""Drop-in modules of which only the selected entries train."""

from .alias import SelectedParameter
from .embedding import SelectiveEmbedding
from .linear import SelectiveConv1D, SelectiveLinear
from .origin import origin_of
from .reading import stored
from .selected import Selected
from .tied import TiedLinear

__all__ = [
    "Selected",
    "SelectedParameter",
    "SelectiveConv1D",
    "SelectiveEmbedding",
    "SelectiveLinear",
    "TiedLinear",
    "origin_of",
    "stored",
]
