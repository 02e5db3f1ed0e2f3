"""Stages of a model: their texts are those of stored indexes, and of metrics measured later."""

import pytest

from fedforget.stage import HEAD, LEFT, Stage, later_metric

TEXTS = {
    "": LEFT,
    "head": HEAD,
    "+5": Stage("later", 5),
    "+20": Stage("later", 20),
    "path 3": Stage("path", 3),
    "rejoin 1": Stage("rejoin", 1),
    "few 10": Stage("few", 10),
    "retain 2": Stage("retain", 2),
}

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("text", TEXTS)
def test_a_stage_and_its_text(text):
    assert Stage.parse(text) == TEXTS[text] and str(TEXTS[text]) == text


@pytest.mark.parametrize("text", ["+", "+x", "head 1", "path", "few", "5", "later 5", "left"])
def test_what_is_no_stage_is_refused(text):
    with pytest.raises(ValueError, match="stage .* is unknown; it is empty, head, "):
        Stage.parse(text)


def test_the_name_of_a_later_metric():
    assert later_metric("+5/canary/auc") == ("5", "canary/auc")
    assert later_metric("canary/auc") == ("", "canary/auc")
