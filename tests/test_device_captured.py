"""What a captured graph must not do: no op, and no step of a Jacobian walk, waits for the device.

Without a GPU the tensors are torch's "meta" ones, which have no values: reading one on the host, or a shape
that depends on them, raises. Kernels are launched into nothing; what surrounds them is the real code.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from families import transformers_model
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

import interpcore
from interpcore import ops
from interpcore.model.linearize import linearize
from interpcore.model.prompts import read_prompts
from interpcore.ops import backend, registration, registration_in_place

BENCH = Path(__file__).resolve().parents[1] / "bench"
LIVE = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Triton forms take meta tensors; the kernels that were launched."""
    if torch.cuda.is_available():
        pytest.skip("gpu_check captures graphs here")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    found: list[object] = []

    def launch(kernel, grid):
        return lambda *arguments, **options: found.append(kernel)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", launch)
    # What torch.library runs on a device; of meta tensors it would ask for shapes alone.
    for name, op in (vars(registration) | vars(registration_in_place)).items():
        if isinstance(op, CustomOpDef):
            monkeypatch.setattr(torch.ops.interpcore, name, op._init_fn)
    problem = backend._problem
    monkeypatch.setattr(
        backend, "_problem", lambda name, x: None if x.is_meta and name == "triton" else problem(name, x)
    )
    return found


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The cases of gpu_check.py, on meta tensors."""
    monkeypatch.syspath_prepend(BENCH)
    import gpu_check

    def generator(case):
        return lambda *shape: torch.empty(shape, dtype=case.dtype, device="meta")

    for name in ("gpu_kernels", "gpu_statistics"):
        monkeypatch.setattr(sys.modules[name], "generator", generator)
    monkeypatch.setattr(sys.modules["gpu_kernels"], "DEVICE", "meta")
    return gpu_check


# It says that it waits: for which groups came.
OPS = [op for op, forms in backend.FORMS.items() if "triton" in forms and op != "group_sums"]


@pytest.mark.parametrize("op", OPS)
def test_no_op_waits_for_the_device(op: str, gpu_check: ModuleType, launches: list[object]) -> None:
    cases = [case for case in gpu_check.cases() if case.op.split()[0] == op and case.backend == "triton"]
    assert cases
    for case in cases:
        launches.clear()
        gpu_check.PROBLEMS[case.op](case).run()
        assert launches, case


def test_a_segment_on_the_device_is_waited_for_as_said(launches: list[object]) -> None:
    x = torch.empty(3, 2, 4, 8, device="meta")
    segment = torch.zeros(2, 4, dtype=torch.int64)
    ops.edge_scores(x, x, [1, 2, 3], segment, 1)
    assert launches
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        ops.edge_scores(x, x, [1, 2, 3], segment.to("meta"), 1)


def test_tokens_of_the_host_wait_for_no_device() -> None:
    model, device = interpcore.load(transformers_model("gpt2")), torch.device("meta")
    mask = torch.ones_like(LIVE)
    mask[0, :3] = 0
    layout, packed = read_prompts(LIVE, mask, None, model.spec, device)
    assert layout.ragged and packed.is_meta
    with pytest.raises(ValueError, match="outside the vocabulary"):
        read_prompts(LIVE + 1000, mask, None, model.spec, device)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_no_step_of_a_walk_waits_for_the_device(family: str, launches: list[object]) -> None:
    model = interpcore.load(transformers_model(family, dtype=torch.float32)).to(device="meta")
    line = linearize(model, LIVE)
    g = torch.empty(2, 5, 1, model.spec.d_model, device="meta")
    steps = 0
    for _ in range(2):
        launches.clear()
        for step in line.reverse(g, embed=True):
            assert step.resid.is_meta
            steps += 1
        assert launches
        tangent: Tensor = torch.empty(2, 5, 7, model.spec.d_model, device="meta")
        assert all(step.resid.is_meta for step in line.forward_mode({0: tangent}))
    assert steps == 2 * (model.plan.n_calls + 2)
