"""What every test runs under.

Poisoned memory, few threads, and nothing left behind by the test before it.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # `import oracle`, which importlib mode would not find

from helpers.devices import MadeByTests, moved_to  # noqa: E402
from helpers.interrupting import autocast_depth, close_autocast  # noqa: E402
from helpers.vision import make_importable  # noqa: E402

make_importable()

# The tensors here are small, a second thread would only spin; tests of threads set their own
# number.
torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised memory holds NaN, so a test cannot pass on what the allocator happened to leave
    there.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def same_threads_and_seed():
    """Every test starts from one seed, and gives back the thread count it found. An interrupt as
    torch puts back the grad mode leaves it off.
    """
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


def pytest_collectstart(collector):
    """What a file draws at its top is the same whatever was imported before it."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """So is what the fixture of a whole file draws, whatever ran before: it is made before
    `same_threads_and_seed` is.
    """
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def autocast_is_left():
    """A test that leaves a region of autocast open would have later ones read old casts of
    their weights; it fails itself instead.
    """
    yield
    left_open = autocast_depth()
    close_autocast()
    assert left_open == 0, f"this test left {left_open} regions of autocast open"


@pytest.fixture(autouse=True)
def compiled_anew():
    """torch.compile refuses a ninth network whose class it has compiled, of whichever tests: those
    of nn.Sequential, of which each has its own, as they happen to run in one process.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def on_device(device, request, monkeypatch):
    """What the test makes without naming a device lies on each in turn, and so do the tensors at
    the top of its file.

    For whole files: `pytestmark = pytest.mark.usefixtures("on_device")`. Products and convolutions
    are in fp32 where they say so, or they would be off by more than what is looked for.
    """
    if device.type == "cpu":
        yield device
        return
    with moved_to(device, request, monkeypatch):
        torch.set_default_device(device)
        try:
            yield device
        finally:
            torch.set_default_device(None)


@pytest.fixture
def made_on_device(device, request, monkeypatch):
    """As `on_device`, but for what the test makes alone: what the library makes lies where it says.

    As for a user who moves model and batches to the GPU, and sets no default device. Not for tests
    that compile, which would compile this as well.
    """
    if device.type == "cpu":
        yield device
        return
    with moved_to(device, request, monkeypatch), MadeByTests(device):
        yield device
