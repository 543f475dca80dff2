"""How kernels that walk the cotangents of a point cut them into programs."""

import triton

# Programs that keep a GPU busy: about 11 warps on each of 132 processors, some times over.
PROGRAMS = 4096


def rows_of_program(points: int, C: int) -> int:
    """How many of the C cotangents of each point a program takes."""
    return min(C, triton.cdiv(points * C, PROGRAMS))
