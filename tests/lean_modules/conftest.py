import sys

import pytest


@pytest.fixture(autouse=True)
def compiled_anew():
    """torch.compile counts how often it has compiled the forward of nn.Sequential, of which each
    test has its own.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
