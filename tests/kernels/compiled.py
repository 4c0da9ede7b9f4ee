"""Compiles what a launcher would launch, without a GPU, and reads the registers and instructions
that come out.
"""

import collections
import pathlib
import re
import subprocess

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
CAPABILITIES = [80, 90, 100]
MMA = {80: "HMMA.16816", 90: "HGMMA.", 100: "UTCHMMA"}  # 16-bit operands
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}  # bytes a block


class Recorder:
    """Stands in for a kernel and keeps its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def specialise(kernel, args, kwargs, capability=90):
    """Signature, constants, attributes and options, as triton's own launcher derives them from the
    arguments.
    """
    backend = make_backend(GPUTarget("cuda", capability, 32))
    bound, specialisation, options = create_function_from_signature(
        kernel.signature, kernel.params, backend
    )(*args, **kwargs)
    options, *source = kernel._pack_args(
        backend, {"debug": False, **kwargs}, bound, specialisation, options
    )
    return dict(zip(("signature", "constexprs", "attrs"), source), fn=kernel), vars(options)


def compile_launch(launch, capability, folder):
    source, options = specialise(*launch, capability)
    compiled = triton.compile(
        ASTSource(**source), target=GPUTarget("cuda", capability, 32), options=options
    )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    dump = subprocess.run(
        [CUOBJDUMP, "-res-usage", "-sass", cubin], check=True, capture_output=True, text=True
    ).stdout
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump).groups()
    )
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", dump)
    resources = dict(registers=registers, stack=stack, local=local, shared=compiled.metadata.shared)
    return {**resources, "ops": collections.Counter(found), "sass": dump}


def count(result, *prefixes):
    return sum(n for op, n in result["ops"].items() if op.startswith(prefixes))


def check_resources(result, capability):
    spilled = result["stack"], result["local"], count(result, "STL", "LDL")
    assert spilled == (0, 0, 0), f"stack, local memory and local instructions: {spilled}"
    assert result["shared"] <= SHARED_LIMIT[capability], (
        f"{result['shared']} bytes of shared memory"
    )


def check_short_divisions(result):
    """A 64-bit division is a routine of a hundred instructions, called for every element."""
    assert not count(result, "CALL"), f"{count(result, 'CALL')} calls, of 64-bit divisions"


def check_tensor_cores(result, instruction):
    assert count(result, instruction), f"no {instruction}"


def check_wide_copies(result):
    copies = [op for op in result["ops"].elements() if op.startswith("LDGSTS")]
    narrow = sum(not op.endswith(".128") for op in copies)
    assert copies and not narrow, (
        f"{narrow} of {len(copies)} copies to shared memory below 16 bytes"
    )
