"""The kernel modules import without a GPU or a driver, and say what they miss when launched.

One process has torch, triton and sparse_ft; each module is imported in a fork of it.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
# Not the root, whose sparse_ft would shadow the installed one.
FOLDER = pathlib.Path(__file__).parent
CALLS = {
    "layout": "pass",
    "gather_selected": "module.gather_selected_triton(x, 'rows', i, 1, 1)",
    "scatter_selected": "module.scatter_selected_triton_(x, x[:1], 'rows', i, 1, 1)",
    "selected_wgrad": "module.selected_wgrad_triton(x, x, 'rows', i, 1, 1)",
    "activation": "module.activation_triton(x, 'silu', x)",
    "batch_norm": "module.batch_norm_triton_(x, x[0], x[0], None, None, 1e-5, False, i)",
    "batch_norm_backward": "module.batch_norm_backward_triton(x, None, x[0], 1e-5, None, x)",
    "gated_product": "module.gated_product_triton(x, x, 'silu', x)",
    "max_pool": "module.max_pool_triton(x, (1, 1), (1, 1), (0, 0), (1, 1), False, x, i)",
    "rms_norm": "module.rms_norm_triton(x, None, 1e-6, 0.0, x, x[0])",
    "positive_bits": "module.positive_bits_triton(x, i)",
    "masked_adamw": (
        "module.masked_adamw_triton_([x], [x], [x], [x], [torch.zeros(())], [], [], [], [], "
        "lr=[1], beta1=[0], beta2=[0], eps=[1], weight_decay=[0])"
    ),
}


PROGRAM = """
import importlib, json, os, sys
import torch, triton, sparse_ft

x, i = torch.zeros(2, 2), torch.tensor([0])
loaded = [name for name in sys.modules if name.startswith("sparse_ft.kernels.")]
assert not loaded, loaded
for stem, call in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0, (stem, status)
        continue
    said = ""
    module = importlib.import_module(f"sparse_ft.kernels.{stem}")
    try:
        exec(call)
    except ValueError as error:
        said = str(error)
    print(json.dumps([stem, said]), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_each_imports_without_a_gpu_and_refuses_cpu_tensors():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CALLS)],
        env=environment, cwd=FOLDER, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = dict(json.loads(line) for line in result.stdout.splitlines())
    assert list(said) == list(CALLS)
    assert said.pop("layout") == ""
    for stem, message in said.items():
        assert "is on cpu: Triton kernels need a CUDA device" in message, (stem, message)
