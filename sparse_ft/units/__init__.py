"""Units: entries of several parameters that must be chosen together, found by behaviour."""

from .finding import units
from .found import Units
from .unit import KINDS, Group, Part, Share, Unit

__all__ = ["KINDS", "Group", "Part", "Share", "Unit", "Units", "units"]
