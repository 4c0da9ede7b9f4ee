"""The tests of sparse_ft._C alone: skipped where the package was installed without its compiled
part.
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # `import core`, which importlib mode would not find

import core  # noqa: E402

collect_ignore_glob = [] if core.C else ["test_*.py"]


@pytest.fixture(params=core.variants())
def variant(request):
    """Each compiled variant that this machine runs."""
    chosen = core.C.build_info()["cpu_variant"]
    core.C.set_cpu_variant(request.param)
    yield request.param
    core.C.set_cpu_variant(chosen)
