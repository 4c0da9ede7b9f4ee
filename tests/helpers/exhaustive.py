"""What takes minutes waits for `SPARSE_FT_SLOW=1`; without it a share runs, spread evenly."""

import os

import pytest

IS_EXHAUSTIVE = os.environ.get("SPARSE_FT_SLOW") == "1"
slow = pytest.mark.skipif(not IS_EXHAUSTIVE, reason="takes minutes: SPARSE_FT_SLOW=1 runs it")


def stride(every: int) -> int:
    """1 in an exhaustive run, else `every`: of so many moments or cases, one is tried."""
    return 1 if IS_EXHAUSTIVE else every
