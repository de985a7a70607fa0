import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from agent.late_package import defer

NAME = "late_example"
INIT = """
from late_example_hooks import run
run()
answer = 42
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """What the `__init__` of `NAME` runs before it has an answer: its `run`. The package is deferred."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "part.py").write_text("inside = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    hooks = sys.modules[f"{NAME}_hooks"] = ModuleType(f"{NAME}_hooks")
    defer(NAME)
    yield hooks
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]


def package() -> ModuleType:
    return importlib.import_module(NAME)


def test_a_module_of_it_is_there_without_its_init(hooks: ModuleType) -> None:
    assert importlib.import_module(f"{NAME}.part").inside == 1
    assert "answer" not in vars(package())


def test_its_init_runs_once_for_two_threads_and_both_have_all_of_it(hooks: ModuleType) -> None:
    runs, others = [], list[Future[int]]()

    def run() -> None:
        runs.append(1)
        if len(runs) == 1:
            others.append(threads.submit(lambda: package().answer))
            with pytest.raises(TimeoutError):  # it waits for this thread
                others[0].result(timeout=0.05)

    hooks.run = run  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as threads:
        assert package().answer == 42
        assert [other.result(timeout=10) for other in others] == [42]
    assert len(runs) == 1


def test_its_init_may_ask_for_what_it_does_not_have_yet(hooks: ModuleType) -> None:
    hooks.run = lambda: found.append(hasattr(package(), "answer"))  # type: ignore[attr-defined]
    found: list[bool] = []
    assert package().answer == 42
    assert found == [False]


def test_an_init_that_failed_is_run_again_and_told_as_its_own_error_again(hooks: ModuleType) -> None:
    def run() -> None:
        raise ImportError("no such library")

    hooks.run = run  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            package().answer  # noqa: B018
    hooks.run = lambda: None  # type: ignore[attr-defined]
    assert package().answer == 42


def test_what_it_never_had_is_an_attribute_error(hooks: ModuleType) -> None:
    hooks.run = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing_such"):
        package().nothing_such  # noqa: B018
    assert type(package()) is ModuleType
