"""Progress: quiet in a file, a bar in a terminal, the cursor given back."""

import io

import pytest

from interpcore.runs import Progress
from interpcore.runs.progress import duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_now_and_then_with_an_estimate():
    clock, stream = Clock(), io.StringIO()
    with Progress("sweep", 110, done=10, stream=stream, every=30, clock=clock) as progress:
        for i in range(100):
            clock.now += 1.0
            progress.advance(failed=i == 5)
    assert stream.getvalue().splitlines() == [
        "sweep: 10 of 110 were finished before",
        "sweep: 40 of 110 finished, 1 failed, about 1 min 10 s left",
        "sweep: 70 of 110 finished, 1 failed, about 40 s left",
        "sweep: 100 of 110 finished, 1 failed, about 10 s left",
        "sweep: 110 of 110 finished, 1 failed in 1 min 40 s",
    ]


def test_not_shown_prints_nothing():
    for stream in (io.StringIO(), Terminal()):
        with Progress("sweep", 2, done=1, shown=False, stream=stream) as progress:
            progress.advance()
        assert stream.getvalue() == ""


def interrupted(stream):
    with Progress("sweep", 3, stream=stream) as progress:
        progress.advance()
        raise KeyboardInterrupt


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_an_interrupt_leaves_a_last_line_and_a_visible_cursor(stream_type, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = stream_type()
    with pytest.raises(KeyboardInterrupt):
        interrupted(stream)
    text = stream.getvalue()
    assert "sweep: stopped with 1 of 3 finished\n" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == (stream_type is Terminal)


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.2, 59.4, 60, 125, 3600, 15000)] == [
        "0 s", "59 s", "1 min 0 s", "2 min 5 s", "1 h 0 min", "4 h 10 min",
    ]  # fmt: skip
