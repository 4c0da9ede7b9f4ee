"""Whatever runs from a checkout sees the public package `kernels`, which transformers imports, and
not the folder.
"""

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

# Has every name that is asked of it; what is called gives back what it is called with, as
# decorators do.
STAND_IN = """
class Anything:
    INFERENCE = TRAINING = TORCH_COMPILE = 0

    def __init__(self, *arguments, **keywords): pass

    def __call__(self, decorated): return decorated


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
"""

USED_BY_TRANSFORMERS = """
from transformers.utils import is_kernels_available
assert is_kernels_available()
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_hidden_layers=1,
    vocab_size=32,
)
import torch
LlamaForCausalLM(config)(torch.tensor([[1, 2]])).logits.sum().backward()
from kernels import get_kernel
import kernels
print(kernels.__file__)
"""

OURS = """
import sparse_ft.kernels.masked_adamw as ours
from sparse_ft.kernels import layout
print(ours.__name__, layout.__file__)
"""

ABSENT = """
import importlib.util
from transformers.utils import is_kernels_available
print(is_kernels_available())
"""


@pytest.fixture
def site(tmp_path):
    """A folder of packages with a regular one named `kernels`, of a version that transformers
    takes.
    """
    wanted = re.compile(r"kernels\b[^;]*[>=]=([\d.]+)")
    lowest = filter(None, map(wanted.match, metadata.requires("transformers")))
    version = next(lowest).group(1)
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    about = tmp_path / f"kernels-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    return tmp_path


def run_in_checkout(script, site=""):
    """The output of a script that runs in the checkout's root, which so comes before `site` on
    sys.path.
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@needs_transformers
def test_transformers_finds_the_public_package(site):
    assert run_in_checkout(USED_BY_TRANSFORMERS, site) == str(site / "kernels" / "__init__.py")


@needs_transformers
@needs_triton
def test_ours_is_found_by_its_own_name_beside_it(site):
    name, file = run_in_checkout(OURS, site).split()
    assert name == "sparse_ft.kernels.masked_adamw"
    assert Path(file) == ROOT / "kernels" / "layout.py"


@needs_transformers
@pytest.mark.skipif(
    any(found.metadata["Name"] == "kernels" for found in metadata.distributions()),
    reason="the public package is installed",
)
def test_the_folder_alone_is_not_taken_for_the_public_package():
    assert run_in_checkout(ABSENT) == "False"
