"""What tests of ops share: every form of one that has a C++ and a Triton form."""

from __future__ import annotations

import pytest

from interpcore.ops.backend import supported_isas

FORMS = [("reference", None), *(("cpu", isa) for isa in supported_isas()), ("triton", None)]
every_form = pytest.mark.parametrize(("name", "isa"), FORMS)


def device_of(request: pytest.FixtureRequest, name: str, isa: str | None) -> str:
    """Where a form takes its tensors; the test runs on the form's instruction set."""
    if isa is not None:
        request.getfixturevalue("monkeypatch").setenv("INTERPCORE_ISA", isa)
    return request.getfixturevalue("triton_device") if name == "triton" else "cpu"
