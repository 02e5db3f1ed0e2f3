"""PUF: the target's ordinary update, negated and scaled, is part of an ordinary round.

Paper: Mora, Mazzocca, Montanari and Bellavista, "Federated Unlearning Made Practical: Seamless Integration via Negated
Pseudo-Gradients", 2025, arXiv 2504.05822.
Source: secondary; a summary of the paper, and the authors' code for the weights.

Symbols: D+ the mean update of the clients that stay, D- that of the clients that leave (weighted by examples); eta_r,
eta_u their rates; U unlearning rounds; R rounds on the retained data afterwards.

    w <- w + eta_r D+ - eta_u D-

PUF-Regular asks the leaving clients together with the round's cohort; PUF-Special (eta_r = 0) the leaving ones alone.

Deviations: the authors' code weighs all updates of a regular round together, so that eta_r is the staying clients'
share of its examples and eta_u is 20 times the leaving clients' (2 where one of ten leaves), and uses eta_u = 2 alone,
once each. Here each group has its own mean; the default rates of 1 are this project's choice. Samples, which the code
can forget too, are not served.

Limit: these rates are too small to forget a client of digits; eta_u = 3 is not (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Card, Cohort, History, Params, Replies, UnlearningRequest, UnlearningStrategy, option


class PseudoGradient(UnlearningStrategy):
    """Apply the target's update backwards, and recover."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rate: float = option(1.0, "of the leaving clients' update", symbol="eta_u", above=0, search=(0.1, 10.0, "log"))
        retained_rate: float = option(1.0, "of the others'; 0: not asked", symbol="eta_r", at_least=0)
        unlearning_rounds: int = option(1, "rounds that negate", symbol="U", at_least=1)
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R", at_least=0)

    scopes = frozenset({"client"})

    @property
    def card(self) -> Card:
        """The leaving clients train once more; the others do in PUF-Regular and in recovery."""
        return Card(target_online=True, retained_online=self.config.retained_rate > 0 or self.config.rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """U rounds that negate, then R ordinary rounds."""
        cfg, w = self.config, history.final
        for t in range(history.rounds + 1, history.rounds + cfg.unlearning_rounds + 1):
            staying = cohort.sample(t) if cfg.retained_rate else ()
            split = "train" if staying else "forget"
            replies = cohort.train(w, (*staying, *cohort.targets), split=split, round=t)
            leave = Replies(reply for reply in replies if reply.client in cohort.targets)
            stay = Replies(reply for reply in replies if reply.client in staying)
            w = w - cfg.rate * leave.mean()
            if stay:
                w = w + cfg.retained_rate * stay.mean()
            yield w
        yield from self.learn(cohort, w, cfg.rounds, first_round=history.rounds + cfg.unlearning_rounds + 1)
