"""Tables as text, HTML and from CSV, and the bar of a job."""

import io

from toposerve_client import Event, Table
from toposerve_client.progress import Bar
from toposerve_client.tables import from_csv

ROWS = Table([{"model": "a:1", "dice": 0.81234567}, {"model": "<b>:1", "dice": None, "images": 4}])


def test_table_has_every_column_and_shows_what_is_missing():
    assert ROWS.columns == ["model", "dice", "images"]
    lines = str(ROWS).splitlines()
    assert lines == ["model  dice    images", "a:1    0.8123  –     ", "<b>:1  –       4     "]
    assert str(Table()) == ""


def test_notebook_shows_a_table_without_running_what_its_cells_say():
    shown = ROWS._repr_html_()
    assert shown.count("<tr>") == 3 and "<td>&lt;b&gt;:1</td>" in shown and "<b>" not in shown


def test_cells_of_a_csv_are_numbers_texts_or_nothing():
    rows = from_csv('name,beta0,roundness,problem,detail\n"a,\nb",3,2.5,,\'=1\n0042,,,gone,\n')
    assert rows[0] == {"name": "a,\nb", "beta0": 3, "roundness": 2.5, "problem": None, "detail": "'=1"}
    assert rows[1] == {"name": "0042", "beta0": None, "roundness": None, "problem": "gone", "detail": None}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream):
    bar = Bar("rings", stream)
    for fraction in (0.0, 0.05, 0.5, 0.52):
        progress = {"fraction": fraction, "phase": "train", "step": 5, "steps": 10, "loss": 0.25, "eta_s": 61.0}
        bar(Event(1, "progress", progress))
    bar(Event(2, "state", {"state": "failed", "reason": "The loss became infinite."}))
    return stream.getvalue()


def test_terminal_shows_one_line_that_is_written_again():
    said = shown(Terminal())
    assert (
        said.count("\r") == 4 and "|###############...............|  50% train  step 5/10  loss 0.250  ETA 1:01" in said
    )
    assert said.endswith("\nrings failed: The loss became infinite.\n")


def test_file_gets_a_line_for_each_tenth():
    assert [line[:10] for line in shown(io.StringIO()).splitlines()] == ["rings   0%", "rings  50%", "rings fail"]
