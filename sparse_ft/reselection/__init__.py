"""Other entries train from now on, in the middle of a training."""

from .changing import check_settings, reselect
from .report import Reselected, ReselectReport
from .seed import Seed

__all__ = ["ReselectReport", "Reselected", "Seed", "check_settings", "reselect"]
