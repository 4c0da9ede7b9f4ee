"""The kernel modules import without a GPU or a driver, and say what they miss when launched."""

import importlib.util
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
PREPARE = "import torch\nx, i = torch.zeros(2, 2), torch.tensor([0])\n"
CALLS = {
    "layout": "raise SystemExit",
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


@pytest.mark.parametrize("stem", CALLS)
def test_imports_without_a_gpu_and_refuses_cpu_tensors(stem):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"{PREPARE}import sparse_ft.kernels.{stem} as module\nprint('imported')\n{CALLS[stem]}"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True)
    assert result.stdout == "imported\n", result.stderr
    if stem != "layout":
        message = result.stderr.strip().splitlines()[-1]
        assert (
            message.startswith("ValueError: ")
            and "is on cpu: Triton kernels need a CUDA device" in message
        )
