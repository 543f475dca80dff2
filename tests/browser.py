"""Pages in a real browser: Chromium without a window, which Debian's package `chromium` has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browse(page: Path, fragment: str = "", script: str = "") -> str:
    """A page's document after its scripts, and after one more, have run.

    Args:
        page: an HTML file.
        fragment: what follows # in its address.
        script: JavaScript that acts as a reader would.
    Returns: HTML. Skips the test where there is no Chromium; fails on any error on the console.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs a browser: install Debian's package chromium")
    shown = page.with_name(f"tried-{page.name}")
    shown.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--virtual-time-budget=3000", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom",
    ]  # fmt: skip
    address = f"{shown.as_uri()}{f'#{fragment}' if fragment else ''}"
    done = subprocess.run([program, *options, address], capture_output=True, text=True, timeout=120)
    shutil.rmtree(page.parent / "profile", ignore_errors=True)
    shown.unlink()
    console = re.findall(r"CONSOLE.*", done.stderr)
    assert done.returncode == 0 and not console, console or done.stderr[-2000:]
    return done.stdout


def said(html: str, name: str) -> str:
    """The text of the element with an id, which holds no further one of its kind."""
    found = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', html, re.S)
    assert found, name
    return re.sub(r"<[^>]+>", "", found[2])
