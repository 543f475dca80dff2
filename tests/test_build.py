"""What an installation holds and what importing it does; the build's own switches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

IMPORT_CHECK = """
import json, os, sys, warnings
import numpy, torch, transformers, safetensors, typer, rich

def state():
    return [str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), torch.initial_seed(),
            dict(os.environ), len(warnings.filters)]

before, loaded = state(), set(sys.modules)
import interpcore, interpcore.ops, interpcore.cli, interpcore.model
new = {name.split(".")[0] for name in set(sys.modules) - loaded}
print(json.dumps([before == state(), sorted(new)]))
"""


def test_import_is_light_and_changes_no_global_state(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error::UserWarning:interpcore", "-c", IMPORT_CHECK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    unchanged, new = json.loads(done.stdout.splitlines()[-1])
    assert unchanged
    heavy = {"matplotlib", "pandas", "networkx", "pyarrow", "scipy", "hypothesis", "pytest", "datasets"}
    assert not heavy & set(new)


def test_every_floor_is_reached_from_the_package_and_loaded_only_then() -> None:
    code = (
        "import sys, time\nbegun = time.process_time()\nimport interpcore\n"
        "took = time.process_time() - begun\n"
        "assert 'torch' not in sys.modules and took < 0.1, took\n"
        "for name in ('ops', 'runs', 'stats', 'model', 'data', 'lre', 'lens', 'circuits', 'neurons'):\n"
        "    assert name in dir(interpcore) and getattr(interpcore, name).__name__ == 'interpcore.' + name\n"
        "assert interpcore.__version__ == interpcore._version.__version__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_help_needs_no_heavy_library_and_is_soon_there() -> None:
    code = (
        "import sys, time\nbegun = time.process_time()\n"
        "from typer.testing import CliRunner\nfrom interpcore.cli import app\n"
        "for command in ([], ['circuits'], ['lre', 'run'], ['neurons', 'summarize']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "    assert command or 'interpcore.runs' not in sys.modules\n"  # nor a family
        "took = time.process_time() - begun\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy and took < 1.5, (heavy, took)\n"  # 0.7 s; the first alone 0.3
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_kernels_folder_cannot_be_taken_for_the_kernels_package() -> None:
    # transformers probes `import kernels`: with an __init__.py it would take this folder, from the checkout.
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()
    folders = {path.name for path in (REPOSITORY / "kernels").iterdir() if path.is_dir()}
    assert folders <= {"__pycache__"}


def test_every_op_has_its_files() -> None:
    from interpcore.ops import reference

    for op in reference.__all__:
        for path in (
            f"python/interpcore/ops/{op}.py",
            f"python/interpcore/ops/reference/{op}.py",
            f"tests/test_{op}.py",
            f"bench/bench_{op}.py",
        ):
            assert (REPOSITORY / path).is_file(), path


def configure(build: Path, cuda: str) -> subprocess.CompletedProcess[str]:
    """Run CMake's configure step with no CUDA compiler to be found."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    command = ["cmake", "-S", REPOSITORY, "-B", build, f"-DINTERPCORE_CUDA={cuda}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    return subprocess.run(command, env=os.environ | {"CUDACXX": "/bin/false"}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("cuda", "ok", "sentence"),
    [
        ("AUTO", True, "Without CUDA kernels: no working CUDA compiler was found"),
        ("OFF", True, "Configuring done"),
        ("ON", False, "INTERPCORE_CUDA=ON needs a working nvcc"),
        ("maybe", False, "INTERPCORE_CUDA is 'maybe'; it must be AUTO, ON or OFF."),
    ],
)
def test_cuda_switch(cuda: str, ok: bool, sentence: str, tmp_path: Path) -> None:
    done = configure(tmp_path, cuda)
    assert (done.returncode == 0) == ok, done.stderr
    assert sentence in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (
            '<testcase classname="T" name="test_triton[0-80]"/><testcase classname="T" name="test_cuda"/>',
            "ran",
        ),
        (
            '<testcase classname="T" name="test_triton[0-80]"/><testcase classname="T" name="test_cuda">'
            '<skipped message="built without nvcc"/></testcase>',
            "test_cuda was skipped: built without nvcc",
        ),
        ('<testcase classname="tests.test_gate" name="test_cuda"/>', "test_cuda did not run"),
    ],
)
def test_ci_fails_where_device_checks_did_not_run(cases: str, said: str, tmp_path: Path) -> None:
    results = tmp_path / "tests.xml"
    named = cases.replace('"T"', '"tests.test_kernels_compile"')
    results.write_text(f"<testsuites><testsuite>{named}</testsuite></testsuites>")
    script = REPOSITORY / ".ci" / "device_checks.py"
    if not script.exists():
        pytest.skip("no checkout: .ci is not in a source distribution")
    environment = os.environ | {"EXPECT_NVCC": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(results)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (said == "ran"), done.stdout
    assert said in done.stdout
