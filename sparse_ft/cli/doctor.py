"""`sparse-ft doctor`."""

import importlib.metadata

from . import options
from .library import sparse_ft
from .misuse import command
from .showing import say, show_facts, show_json

# What can be installed beside the package, and what it is for.
BESIDE = {
    "transformers": "finetune",
    "accelerate": "finetune",
    "safetensors": "models and adapters",
    "peft": "method lora, and adapters",
    "trl": "trainers of language models",
    "lightning": "its trainer",
    "deepspeed": "its trainer",
    "bitsandbytes": "bases in 4 and 8 bits",
    "torchao": "bases in 4 and 8 bits",
    "opacus": "differential privacy",
}


@command
def doctor(as_json: options.JSON = False) -> None:
    """Say what is installed, and what serves each operation."""
    sft = sparse_ft()
    versions = {name: _version(name) for name in BESIDE}
    if as_json:
        import torch

        served = {
            op: {device: list(told) for device, told in devices.items()}
            for op, devices in sft.backends().items()
        }
        document = {"sparse_ft": sft.__version__, "torch": torch.__version__}
        show_json({**document, "beside": versions, "backends": served})
        return
    from ..diagnosis import diagnosis

    say(f"{diagnosis()}\n")
    absent = "not installed"
    show_facts(
        "beside it",
        {name: f"{version or absent}  ({BESIDE[name]})" for name, version in versions.items()},
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
