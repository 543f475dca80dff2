"""Which dtypes a Triton kernel is interpreted in, at which shapes."""

from collections.abc import Sequence

import pytest
import torch


def every_shape_and_dtype(shapes: Sequence[tuple[int, ...]]) -> pytest.MarkDecorator:
    """Parametrises a test by `shape` and `dtype`: float32 and bfloat16 at every shape, float16 at the second.

    float16 at the others is a slow test (seconds): it differs from bfloat16 in casts alone.
    """
    cases = [(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]
    cases.append((shapes[1], torch.float16))
    slow = [pytest.param(s, torch.float16, marks=pytest.mark.slow) for s in shapes if s != shapes[1]]
    return pytest.mark.parametrize(("shape", "dtype"), [*cases, *slow], ids=str)
