"""CPU kernels. Called by interpcore.ops, which checks the arguments."""

from typing import Any

openmp: bool

def supported_isas() -> list[str]: ...
def norm_vjp(args: dict[str, Any], isa: str, threads: int) -> None: ...
