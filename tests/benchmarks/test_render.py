"""What README and docs say is what the records say."""

from __future__ import annotations

import pytest

from benchmarks import render


@pytest.mark.parametrize("path", render.DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_the_records_say(path):
    text = path.read_text()
    assert "<!-- begin: " in text
    assert render.rendered(text) == text, "run python -m benchmarks.render"


@pytest.mark.parametrize(("path", "text"), render.figures().items(), ids=lambda value: getattr(value, "name", ""))
def test_figures_are_drawn_from_the_records(path, text):
    assert (path.read_text() if path.exists() else None) == text, "run python -m benchmarks.render"


def test_a_typed_figure_is_noticed():
    name = next(iter(render.BLOCKS))
    text = f"<!-- begin: {name} -->\n9.99x\n<!-- end: {name} -->\n"
    assert render.rendered(text) != text


def test_text_outside_the_markers_is_kept():
    assert render.rendered("one\ntwo\n") == "one\ntwo\n"
