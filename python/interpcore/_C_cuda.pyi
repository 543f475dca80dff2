"""CUDA kernels, built where nvcc works. Called by interpcore.ops, which checks the arguments."""

from typing import Any

def norm_vjp(args: dict[str, Any], dtype: str, stream: int) -> None: ...
