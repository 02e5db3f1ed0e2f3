"""FATS: go back to the last recorded model that the forgotten data has not touched, and go on without it; exact.

Paper: Tao, Wang, Pan, Yu, Cheng and Wang, "Communication Efficient and Provable Federated Unlearning", PVLDB 17(5),
2024, arXiv 2401.11018.
Source: paper.

Symbols: w^t recorded global model after round t of T (w^0 the initial one); P^t the clients of round t; u those that
hold what is forgotten.

    s = the first round t with u in P^t; where there is none, the model stays as it is
    start from w^{s-1}, then rounds s to T on what is retained

What it saves depends on sampling: if m of C clients take part in a round, drawn uniformly, t rounds go by without a
given one with probability (1 - m/C)^t. Where everybody always takes part, it is the retrain.

Deviations: the paper draws clients and mini-batches with replacement, so few that a request seldom meets them (its
stability parameters rho_C and rho_S), and draws anew the rounds that it repeats. Here clients are drawn without
replacement, and repeated rounds ask whom they asked, minus who left: what the oracle does, so that the result is the
oracle of the same seed to the bit. A round uses all data of its clients, so forgotten examples are as touched as the
clients that hold them. After an earlier request the recorded models know what left before, so the start is w^0. The
released code goes back by one round even if u never took part, and forgets how often a client was drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedforget.strategy import REMEMBERING, Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy


class StableRollback(UnlearningStrategy):
    """Repeat what the forgotten data had a part in, and nothing else."""

    card = Card(records="globals")  # all global models; retained clients repeat rounds

    def check(self, cohort: Cohort) -> None:
        """Refuse learners with a memory: the one of round s - 1 is not recorded."""
        if self.learning.learner in REMEMBERING:
            raise ValueError(
                f"fats cannot go on from the middle of a training with learning.learner={self.learning.learner}, "
                "which remembers earlier rounds; use fedavg"
            )

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """The model as it is, or rounds s to T."""
        s = 1 if cohort.removed else first_round(history, cohort.targets)
        if s is None:
            yield history.final
        else:
            yield from self.learn(cohort, history.model(s - 1), history.rounds - s + 1, first_round=s)


def first_round(history: History, targets: Iterable[int]) -> int | None:
    """The first round that one of ``targets`` took part in; ``None`` if there is none."""
    rounds = range(1, history.rounds + 1)
    return next((t for t in rounds if not set(targets).isdisjoint(history.cohort(t))), None)
