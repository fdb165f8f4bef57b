"""What predict.py says in the end tells what was searched from what was not."""

import pytest

from report.run import DRAWN, Tally, not_examined_rows


def line(verdict="clean", searched=1.0, **more):
    """A line of predictions.jsonl."""
    return {"path": "/a.png", "verdict": verdict, "searched": searched, "score": 0.0, "instances": [], **more}


@pytest.mark.parametrize(
    ("lines", "sentence", "status"),
    [
        ([line()], "1 images: 0 with findings (0 in all), 1 clean, 0 that could not be read", 0),
        ([line(searched=0.0)], f"0 clean, 0 that could not be read; not examined: 1 {DRAWN}", 6),
        ([line("found", 0.0, instances=[{}])], "1 images: 1 with findings (1 in all)", 3),
    ],
)
def test_pure_drawings_are_not_clean(lines, sentence, status):
    """An image that is drawn all over was not searched; a finding in it, which a model proposed, still counts."""
    tally = Tally()
    for each in lines:
        tally.add(each)
    assert sentence in tally.sentence() and tally.status == status


def test_drawings_are_listed_as_such():
    """The page gives the reason for a drawing, not the step at which a model's cascade decided."""
    (row,) = not_examined_rows([line(searched=0.0, reason="no cluster far from the background"), line()])
    assert row["reason"] == DRAWN and row["count"] == 1
