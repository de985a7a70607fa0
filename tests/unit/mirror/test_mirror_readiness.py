"""A mirror is ready once all that answer are copied; it waits 15 s for those that do not, and 10 min for anybody."""

from clustermesh.mirror.readiness import Progress, Readiness

COPIED, HALF = Progress(True, {}), Progress(True, {"services": ""})
SILENT = Progress(False, {"nodes": "", "services": ""})


def test_whoever_answers_is_waited_for_until_all_is_copied() -> None:
    readiness = Readiness()
    assert readiness.waiting({"a": COPIED, "b": HALF}, 100) == ["cluster b: not copied yet: services"]
    assert readiness.waiting({"a": COPIED, "b": COPIED}, 101) == []


def test_whoever_does_not_answer_is_waited_for_a_little() -> None:
    readiness = Readiness()
    assert readiness.waiting({"a": COPIED, "b": SILENT}, 15) == ["cluster b has not answered yet"]
    assert readiness.waiting({"a": COPIED, "b": SILENT}, 15.1) == []


def test_nobody_is_waited_for_for_ever() -> None:
    assert Readiness().waiting({"b": HALF}, 600) != []
    assert Readiness().waiting({"b": HALF}, 601) == []
    assert Readiness().waiting(None, 5) == ["the folder of peers has not been read yet"]


def test_once_ready_always_ready() -> None:
    readiness = Readiness()
    assert readiness.waiting({"a": COPIED}, 1) == []
    assert readiness.waiting({"a": COPIED, "late": SILENT}, 2) == []


def test_what_is_waited_for_is_said() -> None:
    readiness = Readiness()
    refused = Progress(False, {"nodes": ""}, "connection refused")
    late = Progress(True, {"nodes": "waiting for its canary", "services": ""})
    assert readiness.waiting({"a": refused, "b": late}, 1) == [
        "cluster a has not answered yet: connection refused",
        "cluster b: not copied yet: nodes (waiting for its canary), services",
    ]
