"""Every GPU kernel compiles for sm_80 and sm_90 without a GPU, spills nothing and stays within bounds.

A process that interprets Triton kernels cannot compile them, so this file run as a script does the work.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest


class Case(NamedTuple):
    """A Triton kernel with its compile-time values, and the most registers and shared bytes it may take."""

    op: str
    dtype: str
    constants: dict[str, int | bool]
    warps: int
    registers: int
    shared: int


ROW = {"CENTER": True, "WEIGHTED": True, "RESIDUAL": True}
CASES = [
    Case("norm_vjp", "fp32", ROW | {"BLOCK": 1024}, 4, 72, 64),
    Case("norm_vjp", "bf16", ROW | {"BLOCK": 1024}, 4, 72, 64),
    Case("norm_vjp", "bf16", ROW | {"BLOCK": 4096}, 16, 72, 128),
]
# Arguments of a kernel that are not int32; the others are sizes and strides.
POINTERS = {
    "norm_vjp": {"g": None, "normed": None, "rstd": "fp32", "weight": None, "residual": None, "out": None}
}
FLOATS = {"norm_vjp": {"weight_offset"}}
CUDA_REGISTERS = 80


def compile_case(case: Case, capability: int) -> dict:
    """Compile one case; returns its registers, stack and local bytes, shared bytes and PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"interpcore.kernels.{case.op}"), f"{case.op}_kernel")
    signature, attrs = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in POINTERS[case.op]:
            signature[name] = "*" + (POINTERS[case.op][name] or case.dtype)
            attrs[(position,)] = [["tt.divisibility", 16]]  # torch's allocations; without it loads are scalar
        elif name in FLOATS[case.op]:
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            attrs[(position,)] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(name),): value for name, value in case.constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = resource_usage(Path(cubin.name))
    return usage[0] | {"shared": compiled.metadata.shared, "ptx": compiled.asm["ptx"]}


def resource_usage(binary: Path) -> list[dict]:
    """Registers, stack and local bytes of every kernel in a cubin or a library, by Triton's cuobjdump."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    return [
        {"name": name, "registers": int(reg), "stack": int(stack), "local": int(local)}
        for name, reg, stack, local in rows
    ]


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_triton(index: int, capability: int, compiled: list[dict]) -> None:
    case = CASES[index]
    got = next(row for row in compiled if (row["index"], row["capability"]) == (index, capability))
    assert (got["stack"], got["local"]) == (0, 0)
    assert got["registers"] <= case.registers, got["registers"]
    assert got["shared"] <= case.shared, got["shared"]
    assert f".target sm_{capability}" in got["ptx"]
    assert re.search(r"ld\.global\S*\.v[248]", got["ptx"]), "loads are not vectorised"


def test_cuda() -> None:
    pytest.importorskip("triton")
    module = pytest.importorskip("interpcore._C_cuda", reason="built without nvcc")
    kernels = [row for row in resource_usage(Path(module.__file__)) if "interpcore" in row["name"]]
    assert len(kernels) == 6  # three dtypes, two architectures
    for kernel in kernels:
        assert (kernel["stack"], kernel["local"]) == (0, 0), kernel
        assert kernel["registers"] <= CUDA_REGISTERS, kernel


if __name__ == "__main__":
    rows = [
        {"index": i, "capability": capability} | compile_case(case, capability)
        for i, case in enumerate(CASES)
        for capability in (80, 90)
    ]
    json.dump(rows, sys.stdout)
