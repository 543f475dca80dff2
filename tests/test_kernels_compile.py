"""Every GPU kernel compiles for sm_80 and sm_90 without a GPU, spills nothing and stays within bounds.

Where instructions and not bytes could be the limit, the loop over the elements is counted in machine code.

A process that interprets Triton kernels cannot compile them, so this file run as a script does the work. Each
case is compiled for sm_90, one of each kernel for sm_80 too; the others are slow tests (half a minute).
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from machine_code import element_loop, loops_of, machine_code, resource_usage, widest_loop
from triton_cases import CASES, KERNELS, Case

# The CUDA kernels by a part of their names: registers, values that a lane takes in one turn of its loop, and
# instructions for each on sm_90a (0 and 2 thresholds; activations with a factor, a mask and 2 thresholds).
CUDA = {
    "edge_products_kernel": (80, 0, 0.0),
    "edge_sums_kernel": (40, 0, 0.0),
    "settle_kernel": (80, 0, 0.0),
    "merge_kernel": (80, 0, 0.0),
    "column_sums_kernelINS_8BFloat16ELi0": (128, 32, 10),
    "column_sums_kernelINS_7Float32ELi0": (128, 16, 10),
    "column_sums_kernelINS_8BFloat16ELi2": (128, 32, 12),
    "column_sums_kernelINS_7Float32ELi2": (128, 16, 14),
}
CUDA |= {
    f"activation_sums_kernelINS_{dtype}ELi2ELNS_10ActivationE{code}E": (registers, 16, most)
    for dtype, registers in (("8BFloat16", 184), ("7Float32", 224))
    for code, most in ((1, 36), (2, 40))
}
# Destinations in a tile of edge_scores' CUDA form, and instructions of a step.
EDGE_LOOPS = {40: 120, 56: 120, 64: 120, 80: 120}
# Strides that are 1 in every launch that counts; Triton makes such arguments compile-time values.
UNIT_STRIDES = ("m_out", "x_k", "weight_k")


def compile_case(case: Case, capability: int) -> dict:
    """Compile one case; returns its registers, stack and local bytes, shared bytes and PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    about = KERNELS[case.kernel]
    module = importlib.import_module(f"interpcore.kernels.{about.file}")
    kernel = getattr(module, case.kernel)
    signature, attrs = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in about.floats:
            signature[name] = "fp32"
        elif name in UNIT_STRIDES:
            signature[name] = "constexpr"
        else:
            # torch's allocations, and strides of usual widths; without it loads are scalar.
            attrs[(position,)] = [["tt.divisibility", 16]]
            own = name in about.pointers
            signature[name] = "*" + (about.pointers[name] or case.dtype) if own else "i32"
    values = case.constants | {name: 1 for name in UNIT_STRIDES if name in signature}
    constants = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": case.warps,
            "num_stages": case.stages or about.stages,
            "maxnreg": module.most_registers(case.constants["K"]) if about.capped else None,
        },
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = resource_usage(Path(cubin.name))
        loop = element_loop(Path(cubin.name)) if case.elements else []
    return usage[0] | {"shared": compiled.metadata.shared, "ptx": compiled.asm["ptx"], "loop": loop}


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> list[dict]:
    """What the tests of this run ask for."""
    pytest.importorskip("triton")
    tests = [item for item in request.session.items if item.function is test_triton]
    wanted = [(item.callspec.params["index"], item.callspec.params["capability"]) for item in tests]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def targets() -> list:
    """(index, capability) of every case."""
    firsts = {case.kernel: index for index, case in reversed([*enumerate(CASES)])}.values()
    return [
        pytest.param(index, capability, marks=[pytest.mark.slow] * (capability == 80 and index not in firsts))
        for index in range(len(CASES))
        for capability in (80, 90)
    ]


@pytest.mark.parametrize(("index", "capability"), targets())
def test_triton(index: int, capability: int, compiled: list[dict]) -> None:
    case = CASES[index]
    got = next(row for row in compiled if (row["index"], row["capability"]) == (index, capability))
    assert got["stack"] <= case.stack, got["stack"]
    assert got["local"] == 0
    assert got["registers"] <= case.registers, got["registers"]
    assert got["shared"] <= case.shared, got["shared"]
    assert f".target sm_{capability}" in got["ptx"]
    vectors = re.search(r"ld\.global\S*\.v[248]|cp\.async\.cg", got["ptx"])
    if case.elements and capability == 90:
        loop = got["loop"]
        assert sum(f"LDG.E.{8 * case.load}" in line for line in loop) >= 2, "wide loads under way"
        assert not [line for line in loop if re.search(r"\bBAR\b|\bD(ADD|MUL|FMA|SETP)\b|\bLDL\b", line)]
        assert len(loop) <= case.instructions * case.elements, len(loop) / case.elements
    if case.kernel in ("edge_products_kernel", "product_kernel") and capability == 90:
        assert "wgmma.mma_async" in got["ptx"], "the products of a warp group"
    # Two values in half precision fill a plain load of 32 bits.
    pairs = case.dtype == "bf16" and not re.search(r"ld\.global\S*\.[bu]16", got["ptx"])
    assert vectors or pairs, "loads are not vectorised"


def test_cuda() -> None:
    pytest.importorskip("triton")
    module = pytest.importorskip("interpcore._C_cuda", reason="built without nvcc")
    kernels = [row for row in resource_usage(Path(module.__file__)) if "interpcore" in row["name"]]
    code = machine_code(Path(module.__file__))
    found = {part: [row for row in kernels if part in row["name"]] for part in CUDA}
    assert sum(map(len, found.values())) == len(kernels)
    for part, (registers, elements, most) in CUDA.items():
        forms = len(EDGE_LOOPS) if part == "edge_products_kernel" else 1
        assert len(found[part]) == 2 * forms, part  # two architectures
        for kernel in found[part]:
            assert (kernel["stack"], kernel["local"]) == (0, 0), kernel
            assert kernel["registers"] <= registers, kernel
        for (arch, name), text in code.items():
            if elements and part in name and arch.startswith("sm_90"):
                loop = widest_loop(text)
                assert sum("LDG.E.128" in line for line in loop) >= 2, "16-byte loads under way"
                assert not [
                    line for line in loop if re.search(r"\bBAR\b|\bD(ADD|MUL|FMA|SETP)\b|\bLDL\b", line)
                ]
                assert len(loop) <= most * elements, (name, len(loop) / elements)
                assert "Float32" in name or any("MNMX2" in line for line in loop), "packed extremes"


@pytest.mark.parametrize("tile", EDGE_LOOPS)
def test_cuda_edge_products(tile: int) -> None:
    """A step, 128 x 80 x 64, keeps a processor's tensor cores busy for 320 cycles, and each of its schedulers
    with the instructions of two warps; Triton's 128 x 128 x 64 for 512."""
    pytest.importorskip("triton")
    module = pytest.importorskip("interpcore._C_cuda", reason="built without nvcc")
    code = machine_code(Path(module.__file__))
    (text,) = (
        x
        for (arch, name), x in code.items()
        if f"edge_products_kernelILi{tile}E" in name and arch.startswith("sm_90")
    )
    product = f"HGMMA.64x{tile}x16.F32.BF16"
    loop = max(loops_of(text), key=lambda loop: sum(product in line for line in loop))
    assert sum(product in line for line in loop) == 4
    assert sum("LDGSTS.E.BYPASS.128" in line for line in loop) == -(-(128 + tile) // 32)
    assert not [line for line in loop if re.search(r"\bLDL\b|\bSTL\b|\bD(ADD|MUL|FMA)\b", line)]
    assert len(loop) <= EDGE_LOOPS[tile], len(loop)


if __name__ == "__main__":
    rows = [
        {"index": index, "capability": capability} | compile_case(CASES[index], capability)
        for index, capability in json.loads(sys.argv[1])
    ]
    json.dump(rows, sys.stdout)
