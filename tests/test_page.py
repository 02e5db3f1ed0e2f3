"""The page of a real run: that it stands alone, says its evidence everywhere, and lets no text of a run become code."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fedforget import figures, page, report, tables
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid

RUN = (
    "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke evaluation.level=screen evaluation.seeds=3 "
    "engine.device=cpu corruption=trigger evaluation.durability=[1] evaluation.relearn=1 "
    "strategies=[finetune,amnesiac]"
)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Reader(HTMLParser):
    """Collects what the tests ask about; checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.tables: list[list[int]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("th", "td"):
            self.tables[-1][-1] += 1

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, dict]:
    """Header and rows of a small real run."""
    output = tmp_path_factory.mktemp("run")
    folder = Experiment(compose("quickstart", RUN), InProcessGrid(app, 2), output, lambda _: None).run()
    assert (folder / "report.html").read_text() == render(*report.load(folder))
    return report.load(folder)


def render(header, rows) -> str:
    views = tables.views(header, rows)
    return page.render(header, views, [figures.draw(header, view) for view in views], [])


def test_the_page_needs_nothing_but_itself(finished) -> None:
    read = Reader(render(*finished))
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name.endswith(("href", "src", "srcset", "data")):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
            elif not name.startswith("xmlns"):
                assert "//" not in value, (tag, name, value)
    (policy,) = [mine["content"] for tag, mine in read.tags if mine.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page.STYLE and "url(" not in page.STYLE


def test_a_first_column_that_stays_keeps_its_borders() -> None:
    """Collapsed borders belong to the table and scroll away from under a cell that is sticky."""
    assert "position: sticky" in page.STYLE and "border-collapse: collapse" not in page.STYLE
    sticky = re.search(r"th:first-child \{[^}]*position: sticky[^}]*\}", page.STYLE)
    assert sticky and "border-right" in sticky[0]


def test_names_are_unique_and_links_lead_somewhere(finished) -> None:
    read = Reader(render(*finished))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {mine["href"] for tag, mine in read.tags if tag == "a"}
    assert len(links) == 4 and links <= {f"#{name}" for name in ids}


def test_every_table_and_figure_says_how_much_evidence_there_is(finished) -> None:
    header, rows = finished
    read = Reader(render(header, rows))
    framed = [mine for tag, mine in read.tags if tag == "figure"]
    stamps = [text for text in read.text if text.startswith("EL1 (screen), K = 3")]
    assert len(stamps) == len(framed) > 15
    assert all(len(set(row_lengths)) == 1 and len(row_lengths) > 1 for row_lengths in read.tables)
    images = [mine["aria-label"] for tag, mine in read.tags if mine.get("role") == "img"]
    assert len(images) == sum(tag == "svg" for tag, _ in read.tags) > 7 and all(len(text) > 60 for text in images)


def test_what_the_run_found_is_on_the_page(finished) -> None:
    header, rows = finished
    (view,) = tables.views(header, rows)
    assert view.scored  # a planted trigger is learned within three rounds
    text = " ".join(Reader(render(header, rows)).text)
    identity = (header["config"], header["data"], header["trajectory"], header["code"])
    for cell in (*identity, header["claim"], "finetune", "amnesiac", "trigger/success"):
        assert cell in text
    (option,) = header["options"]["finetune"]
    assert (option["name"], option["symbol"], option["value"]) == ("rounds", "R", 5) and option["help"] in text
    assert "Settings of each method" in text
    for metric in view.audits["finetune"]:
        assert metric in text
    for sentence in tables.sentences(header, view):
        assert sentence in text


def test_a_void_request_shows_no_scores(finished) -> None:
    header, rows = finished
    gate = [row | {"state": "void", "why": "it was never learned"} for row in rows["gate"]]
    text = " ".join(Reader(render(header, {**rows, "gate": gate})).text)
    assert "VOID" in text and "it was never learned" in text and "no scores and no verdicts" in text
    for word in ("Tests and limits", "Quality and price", "speed-up", "at equal quality", "Scores of other papers"):
        assert word not in text


def test_no_text_of_a_run_becomes_code(finished) -> None:
    evil = "<script>alert('1')</script><img src=x onerror=alert(1)>"

    def swap(value):
        if isinstance(value, dict):
            return {swap(key): swap(item) for key, item in value.items()}
        if isinstance(value, list):
            return [swap(item) for item in value]
        return evil if value in ("finetune", "quickstart", "client 3") else value

    header, rows = (swap(part) for part in finished)
    assert header["experiment"] == evil and evil in header["strategies"]
    read = Reader(render(header | {"failed": {evil: evil}, "claim": evil}, rows))
    assert not {tag for tag, _ in read.tags} & {"script", "img"}
    assert sum(evil in text for text in read.text) > 20
