"""Selective fine-tuning as a method of Hugging Face's PEFT. Importing this package registers it.

    from peft import get_peft_model
    from sparse_ft.peft import SelectiveConfig
    model = get_peft_model(model, SelectiveConfig(density=0.01, score="magnitude"))

A process that only loads an adapter (`PeftModel.from_pretrained`) imports it, too.
"""

try:
    import peft as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sparse_ft.peft needs the package peft; pip install 'sparse_ft[peft]'"
    ) from error

from .config import SelectiveConfig
from .layer import SelectiveLayer
from .model import SelectiveModel
from .registration import register

__all__ = ["SelectiveConfig", "SelectiveLayer", "SelectiveModel"]

register()
