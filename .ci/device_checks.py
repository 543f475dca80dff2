"""Fails where nvcc was expected and a pytest run left the device checks out: device_checks.py results.xml.

nvcc is expected where it is on the PATH, or where $EXPECT_NVCC is 1.
"""

import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

FILE = "test_kernels_compile"
CHECKS = ("test_triton", "test_cuda")


def problems(results: Path) -> list[str]:
    """What is missing from a JUnit file: device checks that were skipped, or that are not there at all."""
    found, missing = set(), []
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        if not case.get("classname", "").endswith(FILE) or name not in CHECKS:
            continue
        found.add(name)
        skipped = case.find("skipped")
        if skipped is not None:
            missing.append(f"{case.get('name')} was skipped: {skipped.get('message')}")
    return missing + [f"{FILE}::{name} did not run" for name in CHECKS if name not in found]


if __name__ == "__main__":
    if not shutil.which("nvcc") and os.environ.get("EXPECT_NVCC") != "1":
        sys.stdout.write("no nvcc here, and none expected: the CUDA form was not compiled\n")
        sys.exit()
    missing = problems(Path(sys.argv[1]))
    said = [*missing, "device checks are missing" if missing else "device checks ran"]
    sys.stdout.write("\n".join(said) + "\n")
    sys.exit(1 if missing else 0)
