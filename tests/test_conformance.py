"""Every strategy in ``strategies/`` keeps its contract; a new file is covered without an edit here."""

import logging

import pytest

from fedforget.exchange import Card
from fedforget.strategy import UnlearningStrategy, all_strategies
from fedforget.testing import check_strategy


@pytest.mark.parametrize("name", sorted(all_strategies()))
def test_strategy_keeps_its_contract(name):
    costs = check_strategy(all_strategies()[name])
    assert set(costs) == set(all_strategies()[name].scopes)


def test_the_check_keeps_what_flower_logs_to_itself_and_leaves_its_level(caplog, capfd):
    logger = logging.getLogger("flwr")
    before = logger.level
    check_strategy(all_strategies()["finetune"])
    assert logger.level == before and not caplog.records
    assert capfd.readouterr() == ("", "")
    with pytest.raises(AssertionError, match="NaN"):
        check_strategy(Explodes)
    assert logger.level == before


class Draws(UnlearningStrategy):
    def unlearn(self, request, history, cohort):
        import torch

        yield history.final + history.final.by_layer(torch.rand_like)


class TouchesForgotten(UnlearningStrategy):
    def unlearn(self, request, history, cohort):
        yield history.final + cohort.train(history.final, cohort.targets, split="forget").mean()


class ReadsUndeclared(UnlearningStrategy):
    def unlearn(self, request, history, cohort):
        yield history.final - history.update(1, history.cohort(1)[0])


class Explodes(UnlearningStrategy):
    def unlearn(self, request, history, cohort):
        yield history.final * float("nan")


class Silent(UnlearningStrategy):
    def unlearn(self, request, history, cohort):
        return iter(())


class AsksRetained(UnlearningStrategy):
    card = Card(retained_online=False)

    def unlearn(self, request, history, cohort):
        yield history.final + cohort.train(history.final).mean()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (Draws, "another number of nodes"),
        (TouchesForgotten, "target_online"),
        (ReadsUndeclared, "declares records"),
        (Explodes, "NaN"),
        (Silent, "yielded no model"),
        (AsksRetained, "retained_online"),
    ],
)
def test_broken_strategies_are_caught(broken, complaint):
    with pytest.raises((AssertionError, ValueError), match=complaint):
        check_strategy(broken)
