"""Environment and fixtures of the whole test run."""

import os
from pathlib import Path

import pytest

# All must be set before torch starts its threads, and programs that tests start inherit them. Tests use small
# tensors and run side by side, so one thread each; tests of threads ask for more themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# libgomp spins at barriers unless told to sleep, which on busy cores makes two threads slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton warns when this is unset in the versions that plan to change the default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# pytest-xdist tells its workers the terminal's width, which commands would fold their tables to.
os.environ.pop("COLUMNS", None)

import torch

# Triton reads this when a kernel is decorated, so it must be set before interpcore.kernels is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
MOST_WORKERS = 4


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in a worker per core, files kept whole; tests asked for by name run in this
    process, which saves a worker's imports. `-n 0` keeps all in one, and so does a missing pytest-xdist."""
    option = config.option
    if getattr(option, "numprocesses", 0) is not None or option.dist != "no" or option.usepdb:
        return
    asked = [Path(config.invocation_params.dir, arg).resolve() for arg in config.args]
    if asked == [REPOSITORY / "tests"] and "PYTEST_XDIST_WORKER" not in os.environ:
        option.numprocesses = min(os.cpu_count() or 1, MOST_WORKERS)
        option.dist = "loadfile"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of material shared between checkouts; skips the test where there is none."""
    folder = Path(os.environ.get("INTERPCORE_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared folder: $INTERPCORE_SHARED, else ../shared beside the repository root")
    return folder


@pytest.fixture(scope="session")
def real_models() -> Path:
    """Folder of published models that a script brought; skips a test, marked `real`, where it is missing."""
    folder = os.environ.get("INTERPCORE_REAL_MODELS")
    if not folder:
        pytest.skip("needs real models: set INTERPCORE_REAL_MODELS to the folder that they were brought into")
    if not Path(folder).is_dir():
        pytest.fail(f"INTERPCORE_REAL_MODELS names {folder}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Device on which Triton kernels run here: the GPU, else the CPU by Triton's interpreter."""
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        return "cuda"
    numpy = pytest.importorskip("numpy")
    if version_pair(triton.__version__) < (3, 7) and version_pair(numpy.__version__) >= (2, 4):
        pytest.skip("Triton before 3.7 cannot interpret run-time loops with numpy 2.4 or later")
    return "cpu"


def version_pair(version: str) -> tuple[int, int]:
    """(major, minor) of a version string."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
