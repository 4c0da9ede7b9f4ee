"""`python -m sparse_ft` and `sft.backends()`: every op is listed with what serves it, and why."""

import subprocess
import sys

import sparse_ft as sft
from sparse_ft.cli import main
from sparse_ft.ops import SERVED, _native


def test_diagnosis_names_every_op_and_device():
    run = subprocess.run([sys.executable, "-m", "sparse_ft"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for op in ("gather_selected", "scatter_selected_", "swap_selected_", "selected_wgrad", "masked_adamw_"):
        assert op in run.stdout
    assert f"sparse_ft {sft.__version__}" in run.stdout and "GPU" in run.stdout


def test_backends_say_what_serves_and_why(capsys):
    served = sft.backends()
    assert set(served) == set(SERVED)
    for op, devices in served.items():
        assert set(devices) == {"cpu", "cuda", "other"}
        assert all(name and why for name, why in devices.values()), op
    assert served["gather_selected"]["cpu"][0] == ("native" if _native.C else "reference")
    assert main([]) == 0
    assert "served by" in capsys.readouterr().out


def test_version_agrees_with_the_package():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("sparse_ft") == sft.__version__
    except PackageNotFoundError:
        pass  # run from a source tree that was not installed
