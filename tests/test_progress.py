"""Progress of long work: plain lines for log files, and a bar below that of training."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from rich.progress import Progress as Bar
from trainees import trained

from genlab.system import progress
from genlab.train.callbacks import Log
from genlab.train.progress import Progress


@pytest.fixture
def impatient(monkeypatch):
    """A line is due at once."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)


def test_plain_lines_say_what_is_done_and_the_time_left(impatient, capsys):
    def work(advance):
        for done in (500, 500, 1000):
            advance(done)
        return "result"

    assert progress.with_plain_lines("validation", 2000, work) == "result"
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["validation 500/2,000", "validation 1,000/2,000"]
    assert all(re.search(r"  \d+:\d\d left$", line) for line in lines)  # none at the end


def test_nothing_is_said_of_short_work(capsys):
    progress.with_plain_lines("validation", 10, lambda advance: advance(5))
    assert capsys.readouterr().err == ""


def test_validation_pictures_and_test_report_their_progress(impatient, tmp_path, capsys):
    trained(tmp_path / "run")
    err = capsys.readouterr().err
    for title, total in (("validation", 16), ("pictures", 2), ("test", 20)):
        assert re.search(rf"^{title} \d+/{total}  ", err, re.M), title


def test_a_second_bar_goes_when_its_work_is_done_or_fails():
    shown = Progress(Log(1), 8, forecast=False)
    shown._shows, shown._bar = True, Bar(console=Console(quiet=True))
    seen = []

    def work(advance):
        advance(3)
        seen.extend((task.fields["what"], task.completed, task.total) for task in shown._bar.tasks)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        shown.with_progress("validation", 5, work)
    assert seen == [("validation", 3, 5)]
    assert not shown._bar.tasks
