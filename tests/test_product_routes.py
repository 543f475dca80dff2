"""Which routine runs a product: measured once, kept, read back whole or not at all; a run keeps its own."""

import json
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from products_study import Products, bits_of

import interpcore
from interpcore import ops
from interpcore.errors import RunError
from interpcore.model.card import run_card
from interpcore.ops.product_routes import ProductProbe, available, measure, routes
from interpcore.runs import RunCard


@pytest.fixture
def probing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as in a new process with an empty cache folder."""
    module = import_module("interpcore.ops.product_routes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("INTERPCORE_PRODUCT", raising=False)
    module._probe.cache_clear()
    yield module
    module._probe.cache_clear()


def a_probe(routine: str = "matmul") -> ProductProbe:
    return ProductProbe(
        {r: dict.fromkeys(available(), 1.0) for r in routes()}, dict.fromkeys(routes(), routine)
    )


def kept(folder: Path) -> Path:
    (file,) = (folder / "cache" / "interpcore").iterdir()
    return file


def test_probe_measures_every_routine_and_keeps_what_is_clearly_faster() -> None:
    probe = measure()
    for route in routes():
        assert set(probe.speeds[route]) == set(available())
        best = probe.speeds[route][probe.chosen[route]]
        assert best * 1.05**2 >= max(probe.speeds[route].values())


def test_choice_is_measured_once_per_machine(probing, tmp_path, monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(probing, "measure", lambda: measured.append(1) or a_probe())
    first = ops.product_probe()
    for _ in range(3):  # three later processes
        probing._probe.cache_clear()
        assert ops.product_probe() == first
    assert len(measured) == 1
    torch.set_num_threads((threads := torch.get_num_threads()) + 1)
    try:
        ops.product_probe()
    finally:
        torch.set_num_threads(threads)
    assert len(measured) == 2
    assert len(list((tmp_path / "cache" / "interpcore").iterdir())) == 2


def test_process_that_was_first_decides_for_both(probing, monkeypatch) -> None:
    def meanwhile() -> ProductProbe:
        monkeypatch.setattr(probing, "measure", a_probe)
        probing._probe.__wrapped__(ops.backend.isa(), torch.get_num_threads())
        return a_probe("other")

    monkeypatch.setattr(probing, "measure", meanwhile)
    assert set(ops.product_probe().chosen.values()) == {"matmul"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1]",
        lambda text: text.replace("matmul", "blis"),
        lambda text: text.replace('"chosen"', '"taken"'),
        lambda text: json.dumps(json.loads(text) | {"chosen": dict.fromkeys(routes(), "onednn")}),
        lambda text: json.dumps(json.loads(text) | {"chosen": 3}),
    ],
)
def test_damaged_file_is_not_believed(probing, tmp_path, monkeypatch, damage) -> None:
    monkeypatch.setattr(probing, "measure", a_probe)
    right = ops.product_probe()
    whole = kept(tmp_path).read_text()
    kept(tmp_path).write_text(damage(whole))
    probing._probe.cache_clear()
    assert ops.product_probe() == right
    assert kept(tmp_path).read_text() == whole


def test_without_a_folder_to_keep_it_in(probing, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(probing, "measure", a_probe)
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert ops.product_probe() == a_probe()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no home
    probing._probe.cache_clear()
    assert ops.product_probe() == a_probe()


def test_unknown_routine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_PRODUCT", "blis")
    with pytest.raises(RuntimeError, match="INTERPCORE_PRODUCT=blis is not available"):
        ops.product_routes()


def test_routes_of_an_open_run_stand_above_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_PRODUCT", "matmul")
    own, other = ops.product_routes(), list(available())[-1]
    end_first = ops.hold_routes(dict.fromkeys(routes(), other))
    assert set(ops.product_routes().values()) == {other}
    end_second = ops.hold_routes({routes()[0]: "a routine of another machine"})
    assert set(ops.product_routes().values()) == {other}
    end_first()
    assert ops.product_routes() == own
    end_second()
    assert ops.product_routes() == own


@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_run_and_its_workers_give_the_same_bits(tmp_path, monkeypatch, workers) -> None:
    first, then = "matmul", list(available())[-1]
    monkeypatch.setenv("INTERPCORE_PRODUCT", then)
    other = [bits_of(rows) for rows in (8, 100)]
    monkeypatch.setenv("INTERPCORE_PRODUCT", first)
    right = [bits_of(rows) for rows in (8, 100)]
    if other == right:
        pytest.skip("the routines of this machine give the same bits")
    with Products.begin(tmp_path / "run") as study:
        assert study.rows(8) == right[:1]
    monkeypatch.setenv("INTERPCORE_PRODUCT", then)  # what a later process would choose
    with Products.begin(tmp_path / "run", workers) as study:
        assert study.rows(8, 100) == right
    assert [bits_of(rows) for rows in (8, 100)] == other


def test_card_of_a_model_holds_the_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_PRODUCT", "matmul")
    model = interpcore.load("tiny")
    card = run_card(model)
    assert card.products == ops.product_routes()
    monkeypatch.setenv("INTERPCORE_PRODUCT", list(available())[-1])
    assert run_card(model).key == card.key  # a circumstance
    with pytest.raises(RunError, match="products of the run card"):
        RunCard.from_json(card.to_json() | {"products": {"in-by-out, few rows": ["matmul"]}})


@pytest.mark.slow  # a minute
def test_sixty_probes_agree() -> None:
    probes = [measure() for _ in range(60)]
    for route in routes():
        (usual, times), *others = Counter(probe.chosen[route] for probe in probes).most_common()
        speeds = {
            name: sorted(probe.speeds[route][name] for probe in probes)[30] for name in (usual, *dict(others))
        }
        close = all(speeds[name] > 0.95 * speeds[usual] for name in speeds)
        assert times >= 57 or close, (route, times, others, speeds)
