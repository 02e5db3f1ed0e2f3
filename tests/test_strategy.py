"""A strategy of the user's own: found in a folder of theirs, and every mistake in it is one sentence that names it."""

from __future__ import annotations

import sys

import pytest

from fedforget.config import compose, describe
from fedforget.exchange import Card
from fedforget.strategy import find

HEAD = '''"""One of the user's own."""

from dataclasses import dataclass

import torch

from fedforget.exchange import Card
from fedforget.params import Layout, Params
from fedforget.strategy import UnlearningStrategy


class Mine(UnlearningStrategy):
'''
DONE = "    def unlearn(self, request, history, cohort):\n        yield history.final\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes strategies/mine.py and configs/strategy/mine.yaml in a folder from which they are found."""
    for folder in ("strategies", "configs/strategy"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code, options="{}\n"):
        (tmp_path / "strategies" / "mine.py").write_text(code)
        (tmp_path / "configs" / "strategy" / "mine.yaml").write_text(options)

    yield write
    sys.modules.pop("strategies.mine", None)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("class Mine(:\n", "strategies/mine.py cannot be imported: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import no_such_package\n", "strategies/mine.py cannot be imported: ModuleNotFoundError: No module named"),
        ("x = 1\n", "strategies/mine.py holds 0 strategies"),
        (HEAD + "    pass\n", "strategies/mine.py: Mine does not define unlearn"),
        (HEAD + "    scopes = frozenset({'clint'})\n\n" + DONE, "strategies/mine.py: Mine has scopes ['clint'], but"),
        (
            HEAD + "    class Config:\n        a: int = 1\n\n" + DONE,
            "strategies/mine.py: Mine.Config must be a dataclass",
        ),
        (
            HEAD + "    @dataclass(frozen=True)\n    class Config:\n        a: int\n\n" + DONE,
            "strategies/mine.py: Mine.Config.a has no default",
        ),
    ],
)
def test_a_file_that_holds_no_strategy_is_refused(write, code, complaint):
    write(code)
    with pytest.raises(ValueError) as error:
        find("mine")
    assert str(error.value).startswith(complaint)


def test_an_option_that_a_strategy_does_not_have_is_refused(write):
    write(HEAD + DONE, "a: 1\n")
    with pytest.raises(ValueError, match="unknown key 'strategy.mine.a'; there is none"):
        compose("quickstart", "strategies=[mine]")


def test_an_option_of_any_type_is_held_against_it(write):
    write(HEAD + "    @dataclass(frozen=True)\n    class Config:\n        a: list = None\n\n" + DONE, "a: 1\n")
    with pytest.raises(ValueError, match="strategy.mine.a is 1, but must be of type <class 'list'>"):
        compose("quickstart", "strategies=[mine]")


def test_a_file_that_is_no_text_does_not_hide_the_others(write, tmp_path):
    write(HEAD + DONE)
    (tmp_path / "configs" / "strategy" / "mine.yaml").write_bytes(b"# caf\xe9\n")
    assert {"mine", "finetune"} <= describe()["groups"]["strategy"].keys()
    with pytest.raises(ValueError, match="mine.yaml is not valid YAML"):
        compose("quickstart", "strategies=[mine]")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("strategy: mine\n", "is a variant of itself .mine -> mine"),
        ("strategy: 5\n", "mine.yaml: strategy is 5, but must be a text"),
    ],
)
def test_a_variant_of_nothing_is_refused(write, options, complaint):
    write(HEAD + DONE, options)
    with pytest.raises(ValueError, match=complaint):
        compose("quickstart", "strategies=[mine]")


def test_a_card_of_unknown_words_is_refused():
    with pytest.raises(ValueError, match="Card.records is 'some', but must be one of nothing, globals, targets, all"):
        Card(records="some")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("yield history.finale", "mine.py, line 14: AttributeError: 'History' object has no attribute 'finale'"),
        ("yield history.update(1, 0)", "mine.py, line 14: this strategy reads the update of client 0 in round 1"),
        ("yield history.final.flat", ": unlearn yielded an object of type Tensor; it must yield Params in the layout"),
        ("yield None", ": unlearn yielded None; it must yield Params in the layout"),
        ("yield [history.final]", ": unlearn yielded an object of type list; it must yield Params in the layout"),
        (
            "yield Params(torch.zeros(5), Layout(('a',), ((5,),)))",
            ": unlearn yielded Params in another layout; it must yield Params in",
        ),
        ("yield from ()", ": unlearn yielded no model; it must yield one after each round"),
        ("return None", ": unlearn returned None; it must yield a model after each round"),
        ("return history.final", ": unlearn returned an object of type Params; it must yield a model"),
        ("return history.final.flat", ": unlearn returned an object of type Tensor; it must yield a model"),
        ("return {'model': history.final}", ": unlearn returned an object of type dict; it must yield a model"),
        ("raise KeyError(history.final)", ": KeyError: Params(650 numbers in 2 layers, torch.float32)"),
    ],
)
def test_what_fails_while_it_serves_is_one_sentence_that_names_the_line(write, run_small, body, complaint):
    write(f"{HEAD}    def unlearn(self, request, history, cohort):\n        {body}\n")
    with pytest.raises(ValueError) as error:
        run_small("strategies=[mine]")
    said = str(error.value)
    assert said.startswith("strategy 'mine' failed") and complaint in said
    assert "tensor(" not in said and "\n" not in said and len(said) < 300


def test_a_model_that_is_not_finite_has_no_row(write, run_small):
    write(f"{HEAD}    def unlearn(self, request, history, cohort):\n        yield history.final * float('nan')\n")
    experiment, said = run_small("strategies=[mine,finetune]")
    (note,) = [line for line in said if line.startswith("  note: ")]
    assert note == "  note: mine failed and is left out, seed 0: its model holds NaN or infinite values"
    rows = (experiment.folder / "verdicts.csv").read_text()
    assert ",finetune," in rows and ",mine," not in rows


ROUTINE = f"""{HEAD}    card = Card(target_online=True)

    def unlearn(self, request, history, cohort):
        w = history.final + cohort.reduce(
            history.final, cohort.targets, routine="strategies.mine:ascend", split="forget", lr=0.01
        )
        yield w


def ascend(client):
    for inputs, labels in client.batches():
        client.step(-client.loss(inputs, labels))
"""


def test_a_computation_of_the_clients_travels_by_name(write, run_small):
    write(ROUTINE)
    _, said = run_small("strategies=[mine]")
    assert not [line for line in said if line.startswith("  note: ")]
    assert any("mine, seed 0: 1 rounds" in line for line in said)


def test_a_computation_that_returns_no_vector_says_so(write, run_small):
    write(f"{ROUTINE}    return client.model\n")
    _, said = run_small("strategies=[mine]")
    (note,) = [line for line in said if line.startswith("  note: ")]
    assert "routine 'strategies.mine:ascend' returned a Sequential, not Params or None" in note
