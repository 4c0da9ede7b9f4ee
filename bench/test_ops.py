"""Every case under pytest-benchmark, for its histories and comparisons between commits.

Not part of `make test`.

python -m pytest bench -k "masked_adamw and entries" --benchmark-autosave --benchmark-compare
python -m pytest bench --size tiny --provider index_select
"""

import pytest

pytest.importorskip("pytest_benchmark")

from bench.main import OPS, module_of  # noqa: E402
from bench.suite import Unavailable  # noqa: E402


def pytest_generate_tests(metafunc):
    size = metafunc.config.getoption("--size")
    found = [
        (op, case)
        for op in OPS
        if hasattr(module_of(op), "providers")
        for case in module_of(op).cases(size)
    ]
    metafunc.parametrize(("op", "case"), found, ids=[f"{op}-{case.name}" for op, case in found])


def test_case(benchmark, request, op, case):
    providers, name = module_of(op).providers(case), request.config.getoption("--provider")
    if name not in providers:
        pytest.skip(f"{case.name} has no provider {name!r}, only {', '.join(providers)}")
    try:
        call = providers[name]()
    except Unavailable as why:
        pytest.skip(str(why))
    benchmark.group = f"{op}: {case.name}"
    benchmark(call)
