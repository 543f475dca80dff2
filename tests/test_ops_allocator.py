"""Freed memory stays with the process, for the next array, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

from interpcore.ops.allocator import described, left_alone
from interpcore.ops.backend import native_cpu

FAULTS = """
import resource, torch
from interpcore import ops
torch.set_num_threads(1)
x, shift = torch.randn(64, 64), torch.zeros(64)
ops.column_moments(x, shift=shift)

def step():
    made = [torch.empty(1 << 20, dtype=torch.uint8).fill_(1) for _ in range(4)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Pages that the system clears while a process makes and drops 4 MB ten times."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "INTERPCORE_ALLOCATOR"))
    }
    made = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(made.stdout)


@pytest.mark.skipif(
    native_cpu() is None or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
    reason="only glibc is told",
)
def test_pages_of_dropped_arrays_are_used_again() -> None:
    pages = 4 << 20 >> 12
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    assert faults() < pages < 5 * pages < faults(**given_back)


@pytest.mark.parametrize(
    ("name", "value", "stands"),
    [
        ("INTERPCORE_ALLOCATOR", "system", True),
        ("MALLOC_TRIM_THRESHOLD_", "1000000", True),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1", True),
        ("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off", False),
    ],
)
def test_the_environment_has_the_last_word(
    name: str, value: str, stands: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (
        "INTERPCORE_ALLOCATOR",
        "GLIBC_TUNABLES",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
    ):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert left_alone() == (name if stands else None)
    assert described(False) == (f"as {name} says" if stands else "as the C library does it")


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ALLOCATOR", "sytem")
    with pytest.raises(ValueError, match="INTERPCORE_ALLOCATOR=sytem is unknown; unset it or give system"):
        left_alone()
