"""Copies of a disconnected cluster go after a wait, in which it may come back."""

from pathlib import Path

from clustermesh.mirror.departures import Departures, Leaving, is_gone


def test_its_configuration_goes_at_once_and_its_copies_after_the_wait() -> None:
    departures = Departures(wait=180)
    assert departures.look({"a", "b"}, {"a", "b"}, 0) == Leaving([], [])
    assert departures.look({"a", "b"}, {"a"}, 10) == Leaving(["b"], [])
    assert departures.look({"a", "b"}, {"a"}, 189) == Leaving([], [])
    assert departures.look({"a", "b"}, {"a"}, 190) == Leaving([], ["b"])


def test_one_that_comes_back_stays_and_waits_anew_the_next_time() -> None:
    departures = Departures(wait=180)
    departures.look({"b"}, set(), 0)
    assert departures.look({"b"}, {"b"}, 100) == Leaving([], [])
    assert departures.look({"b"}, set(), 150) == Leaving(["b"], [])
    assert departures.look({"b"}, set(), 200) == Leaving([], [])


def test_one_of_which_nothing_is_left_is_forgotten() -> None:
    departures = Departures(wait=180)
    departures.look({"b"}, set(), 0)
    assert departures.look(set(), set(), 200) == Leaving([], [])
    assert not departures.due


def test_only_a_file_that_is_known_not_to_be_there_is_gone(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    (tmp_path / "c").symlink_to("nowhere")
    (tmp_path / "d").symlink_to("x" * 300)  # as on a file system that answers with an error, whoever asks
    assert [is_gone(tmp_path / name) for name in "abcd"] == [True, False, True, False]
