"""Every norm of the installed transformers is known for what its numbers say.

A formula in plain PyTorch decides, by values in four pairs of dtypes; classes of one text are tried
once.
"""

import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.lean_modules.attach import lean_forward_of

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("on_device")

MODELS = Path(transformers.__file__).parent / "models"
CLASS = re.compile(r"^class (\w*Norm\w*)\(nn\.Module\):\n((?:(?:    .*)?\n)+)", re.MULTILINE)
PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
]
KNOWN_BEFORE = 174  # classes that transformers 5.23 has of the four forms


def texts() -> dict[str, list[tuple[str, str]]]:
    """{text of a class without its name: [(Python module, class)]}"""
    found = defaultdict(list)
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        module = f"transformers.models.{path.parent.name}.{path.stem}"
        for name, body in CLASS.findall(path.read_text()):
            body = re.sub(r'"""[\s\S]*?"""', "", body).replace(name, "")
            found[body].append((module, name))
    return found


TEXTS = texts()


def formulas(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> dict[str, torch.Tensor]:
    """What each of the lean forwards stands for, in fp32 and rounded once."""
    wide = x.float()
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is None:
        return {"bare_forward": normed.to(x.dtype)}
    both = torch.result_type(x, weight)
    half = weight.dtype == torch.bfloat16
    return {
        "llama_forward": (normed * weight.float()).to(both),
        "olmo_forward": (normed * weight.float()).to(x.dtype),
        "t5_forward": (normed * weight.float()).to(weight.dtype if half else both),
        "gemma_forward": (normed * (1 + weight.float())).to(x.dtype),
    }


def build(cls: type[nn.Module]) -> nn.Module | None:
    for arguments in ((16,), (16, 1e-6), ()):
        try:
            return cls(*arguments)
        except (TypeError, AttributeError, ValueError):
            continue
    return None


def form_of(norm: nn.Module) -> str:
    """The formula that an instance follows, whatever the shape of its input; "" for none."""
    names = [name for name in ("variance_epsilon", "eps", "epsilon") if name in vars(norm)]
    given = dict(norm.named_parameters())
    weight = given.get("weight")
    if set(given) - {"weight"} or list(norm.buffers()) or not names:
        return ""
    fits = None
    for input_dtype, weight_dtype in PAIRS:
        if weight is not None:
            norm.weight = nn.Parameter((torch.rand_like(weight.float()) + 0.5).to(weight_dtype))
        x = (torch.randn(3, 16) * torch.tensor([[1e-3], [1.0], [4.0]])).to(input_dtype)
        try:
            got = norm(x)
            norm(x[0])  # of any number of dimensions
        except Exception:  # it takes other inputs
            return ""
        if not isinstance(got, torch.Tensor):
            return ""
        scale = getattr(norm, "weight", None) if weight is not None else None
        close = {
            name
            for name, want in formulas(x, scale, getattr(norm, names[0])).items()
            if want.dtype == got.dtype
            and want.shape == got.shape
            and torch.allclose(want.float(), got.float(), rtol=tolerance(x, scale, got), atol=1e-6)
        }
        fits = close if fits is None else fits & close
    return min(fits, default="")


def tolerance(*tensors: torch.Tensor | None) -> float:
    half = any(tensor is not None and tensor.dtype == torch.bfloat16 for tensor in tensors)
    return 4 * torch.finfo(torch.bfloat16).eps if half else 1e-5


@pytest.fixture(scope="module")
def classified() -> dict[str, tuple[str, str, int]]:
    """{class: (its formula, its lean forward, how many have its text)}; "" where there is none."""
    found = {}
    torch.manual_seed(0)
    for classes in TEXTS.values():
        module, name = classes[0]
        try:
            norm = build(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):
            continue
        if norm is None:
            continue
        form = form_of(norm.eval())
        sft.lean(norm)
        forward = lean_forward_of(norm)
        found[f"{module}.{name}"] = form, forward.__name__ if forward else "", len(classes)
    return found


def test_each_is_what_its_numbers_say(classified):
    assert classified
    apart = {name: found[:2] for name, found in classified.items() if found[0] != found[1]}
    assert apart == {}


def test_no_fewer_than_by_their_text(classified):
    assert sum(count for form, _, count in classified.values() if form) >= KNOWN_BEFORE


@pytest.mark.parametrize(
    "name",
    [
        "llama.modeling_llama.LlamaRMSNorm",
        "olmo2.modeling_olmo2.Olmo2RMSNorm",
        "t5.modeling_t5.T5LayerNorm",
        "gemma.modeling_gemma.GemmaRMSNorm",
        "llama4.modeling_llama4.Llama4TextRMSNorm",
        "gemma3n.modeling_gemma3n.Gemma3nRMSNorm",
        "helium.modeling_helium.HeliumRMSNorm",
        "moshi.modeling_moshi.MoshiRMSNorm",
        "nemotron_h.modeling_nemotron_h.NemotronHRMSNorm",
    ],
)
def test_norms_of_well_known_models(name):
    module, _, cls = name.rpartition(".")
    norm = getattr(importlib.import_module(f"transformers.models.{module}"), cls)(16)
    assert sft.lean(norm).changed == [""]
