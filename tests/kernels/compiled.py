"""Compiles what a launcher would launch, without a GPU, and reads the registers and instructions
that come out.
"""

import collections
import functools
import pathlib
import re
import subprocess

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


class Compiled:
    """A cubin, and what it takes of a device.

    registers a thread; stack and local: bytes a thread, both 0 unless registers are spilled;
    shared: bytes a block.
    """

    def __init__(self, cubin, shared):
        self.cubin, self.shared = cubin, shared
        usage = _tool("cuobjdump", "-res-usage", cubin)
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        self.registers, self.stack, self.local = map(int, found.groups())

    @functools.cached_property
    def sass(self):
        """The disassembly, which takes longer than to compile: for who asks."""
        return _tool("nvdisasm", "-ndf", "-c", self.cubin)

    @functools.cached_property
    def instructions(self):
        """{instruction: how often it stands there}."""
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", self.sass)
        return collections.Counter(found)


def _tool(name, *arguments):
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_launch(launch, capability, folder):
    source, options = specialise(*launch, capability)
    compiled = triton.compile(
        ASTSource(**source), target=GPUTarget("cuda", capability, 32), options=options
    )
    cubin = folder / f"kernel{len(list(folder.glob('*.cubin')))}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    return Compiled(cubin, compiled.metadata.shared)


def count(result, *prefixes):
    found = result.instructions.items()
    return sum(n for instruction, n in found if instruction.startswith(prefixes))


def check_resources(result, capability):
    """Spilled registers have their places on the stack."""
    spilled = result.stack, result.local
    assert spilled == (0, 0), f"bytes of stack and of local memory: {spilled}"
    assert result.shared <= SHARED_LIMIT[capability], f"{result.shared} bytes of shared memory"


def check_short_divisions(result):
    """A 64-bit division is a routine of a hundred instructions, called for every element."""
    assert not count(result, "CALL"), f"{count(result, 'CALL')} calls, of 64-bit divisions"


def check_tensor_cores(result, instruction):
    assert count(result, instruction), f"no {instruction}"


def check_wide_copies(result):
    copies = [each for each in result.instructions.elements() if each.startswith("LDGSTS")]
    narrow = sum(not each.endswith(".128") for each in copies)
    assert copies and not narrow, (
        f"{narrow} of {len(copies)} copies to shared memory below 16 bytes"
    )
