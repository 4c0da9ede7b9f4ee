"""Kernels that are wrong on purpose: what a check must see."""

import torch
import triton
import triton.language as tl

PROGRAMS = 512


@triton.jit
def race(out_ptr, BLOCK: tl.constexpr):
    place = out_ptr + tl.arange(0, BLOCK)
    # Every program adds to the same places, and not one after the other.
    tl.store(place, tl.load(place) + 1)


@triton.jit
def overrun(out_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, place.to(tl.float32), mask=place < count + 64)


def planted(what):
    """A callable that runs one of them and returns its tensors."""

    def call():
        out = torch.zeros(128 if what == "race" else 100, device="cuda")
        race[(PROGRAMS,)](out, BLOCK=128) if what == "race" else overrun[(1,)](out, 100, BLOCK=256)
        torch.cuda.synchronize()
        return [out]

    return call
