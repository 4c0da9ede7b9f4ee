"""Several problems of one kind in one launch.

A tuple of the fields of each, from which every program picks those of its own.

The fields are arguments of the kernel, by value: no table is uploaded, and a CUDA graph holds them
as it holds any argument.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import triton
import triton.language as tl

from .layout import power_of_two

# problems a launch: 16 times 14 fields are 1.8 KB of the 4 KB of arguments that every driver takes
GROUP = 16


@triton.jit
def number(coded):
    """What `code` made of a number."""
    return (coded - 3) >> 1


@triton.jit
def pick(problems, program, FIELD: tl.constexpr):
    """A field of the problem that a program works on.

    One of several is a select each, once a program.
    """
    value = problems[0][FIELD]
    for i in tl.static_range(1, len(problems)):
        value = tl.where(program >= number(problems[i - 1][-1]), problems[i][FIELD], value)
    return value


@triton.jit
def within(problems, program):
    """A program's number among those of its problem."""
    begin = program * 0
    for i in tl.static_range(1, len(problems)):
        end = number(problems[i - 1][-1])
        begin = tl.where(program >= end, end, begin)
    return program - begin


@triton.jit
def programs_of(problems):
    """How many programs all problems have."""
    return number(problems[len(problems) - 1][-1])


def code(*numbers: int) -> list[int]:
    """Numbers as odd ones above 1.

    Triton compiles a kernel for each pattern of ones and multiples of 16 in a tuple.
    """
    return [2 * n + 3 for n in numbers]


def launches(problems: Iterable[tuple[Any, tuple, int]]) -> Iterator[tuple[Any, tuple, int]]:
    """(key, tuple of fields, programs in all) of each launch for problems (key, fields, programs),
    alike in their key.

    The last field of a problem, coded, says at which program it ends. The tuple has a power of two
    of problems, so that few kernels are compiled; those that fill it up have no programs.
    """
    alike = {}
    for key, fields, programs in problems:
        alike.setdefault(key, []).append((fields, programs))
    for key, some in alike.items():
        for at in range(0, len(some), GROUP):
            group, end = [], 0
            for fields, programs in some[at : at + GROUP]:
                end += programs
                group.append((*fields, *code(end)))
            group += group[-1:] * (power_of_two(len(group)) - len(group))
            yield key, tuple(group), end
