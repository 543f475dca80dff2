"""Machine instructions and resources of compiled kernels, read by Triton's cuobjdump."""

import re
import subprocess
from pathlib import Path


def element_loop(binary: Path) -> list[str]:
    """The machine instructions of the loop with the most loads of 8 and 16 bytes, by Triton's cuobjdump."""
    (text,) = machine_code(binary).values()
    return widest_loop(text)


def machine_code(binary: Path) -> dict[tuple[str, str], str]:
    """By architecture and name, the instructions of every kernel in a cubin or a library."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "-sass", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, arch = {}, ""
    for part in re.split(r"(?=\bFunction : |\barch = )", text):
        head, _, body = part.partition("\n")
        arch = head.removeprefix("arch = ").strip() if head.startswith("arch = ") else arch
        if head.startswith("Function : "):
            found[arch, head.removeprefix("Function : ").strip()] = body
    return found


def widest_loop(text: str) -> list[str]:
    """Of a kernel's instructions those of the loop with the most loads of 8 and 16 bytes."""
    return max(
        loops_of(text), key=lambda loop: sum(bool(re.search(r"LDG\.E\.(64|128)", body)) for body in loop)
    )


def loops_of(text: str) -> list[list[str]]:
    """Of a kernel's instructions those of each loop."""
    lines = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", text)]
    loops: list[list[str]] = []
    for at, what in lines:
        back = re.search(r"\bBRA\S*\s.*?0x([0-9a-f]+)", what)
        if back and int(back[1], 16) < at:
            loops.append([body for place, body in lines if int(back[1], 16) <= place <= at])
    return loops


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
