"""`python -m sparse_ft`: the diagnosis of this installation; with `estimate`: what training a model will take."""

import argparse
import os
import warnings

from .backends import diagnosis
from .memory import estimate, side_by_side
from .salience.budget import STRUCTURES


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m sparse_ft", description="Print versions, hardware, and which implementation serves each op."
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_estimate(commands)
    arguments = parser.parse_args(argv)
    print(diagnosis() if arguments.command is None else _estimate(arguments, parser))
    return 0


def _add_estimate(commands):
    what = "bytes that a training step of a model takes: all of it, LoRA, and a selection, side by side"
    parser = commands.add_parser("estimate", help=what, description=f"Print the {what}. Reads a config only, no weights.")
    parser.add_argument("config", metavar="CONFIG.json", help="config of a transformers model: the file, or its folder")
    parser.add_argument("--batch", type=int, default=1, help="rows of a batch (1)")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--density", type=float, default=0.01, help="share of each linear weight that trains (0.01)")
    parser.add_argument("--structure", choices=STRUCTURES, default="columns", help="what is selected (columns)")
    parser.add_argument("--lora", type=int, default=8, metavar="RANK", help="rank of LoRA, 0: leave it out (8)")
    parser.add_argument("--lean", action="store_true", help="the selection also with sft.lean")
    parser.add_argument("--padded", action="store_true", help="rows of several lengths, so with an attention mask")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the config's)")


def _estimate(arguments, parser):
    """The table, as text."""
    import torch

    config = _read_config(arguments.config, parser)
    settings = dict(optimizer=arguments.optimizer, padded=arguments.padded)
    settings["dtype"] = arguments.dtype and getattr(torch, arguments.dtype)
    ours = f"{arguments.density:.3g} {arguments.structure}"
    selection = {"structure": arguments.structure, "density": arguments.density}
    wanted = {"full": (None, False), f"LoRA r{arguments.lora}": ({"lora": arguments.lora}, False), ours: (selection, False)}
    if not arguments.lora:
        del wanted["LoRA r0"]
    if arguments.lean:
        wanted[f"{ours}, lean"] = selection, True
    found, notes = {}, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, (plan, lean) in wanted.items():
            try:
                found[label] = estimate(config, plan, arguments.batch, arguments.sequence, lean=lean, **settings)
            except ImportError as why:
                notes.append(f"{label}: left out, {why}")
            except (TypeError, ValueError) as why:
                parser.error(str(why))
    head = f"a training step, batch {arguments.batch} × {arguments.sequence}, {arguments.optimizer}"
    return "\n".join([head, side_by_side(found), *notes])


def _read_config(path, parser):
    try:
        from transformers import AutoConfig
    except ImportError:
        parser.error("estimate needs transformers; pip install transformers")
    if not os.path.exists(path):
        parser.error(f"CONFIG.json: no file or folder {path!r}")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as why:
        parser.error(f"CONFIG.json: {str(why).splitlines()[0]}")
