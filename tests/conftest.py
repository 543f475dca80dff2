"""Environment and fixtures of the whole test run."""

import os
from pathlib import Path

import pytest

# Both must be set before torch starts its threads: libgomp spins at barriers unless told to sleep, which on
# busy cores makes two threads slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton warns when this is unset in the versions that plan to change the default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch

# Triton reads this when a kernel is decorated, so it must be set before interpcore.kernels is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of material shared between checkouts; skips the test where there is none."""
    folder = Path(os.environ.get("INTERPCORE_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared folder: $INTERPCORE_SHARED, else ../shared beside the repository root")
    return folder


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
