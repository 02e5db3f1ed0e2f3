"""FedEraser: replay the history, with each retained client's update calibrated by a short new training.

Paper: Liu, Ma, Yang, Wang and Liu, "FedEraser: Enabling Efficient Client-Level Data Removal from Federated Learning
Models", IWQoS 2021, arXiv 2012.13891.
Source: paper.

Symbols: w the unlearned model; U_k^t recorded update of client k in round t; Uh_k its update from a short training from
w; Ut_k the calibrated update; dt interval between replayed rounds; r ratio of calibration epochs to local epochs; n_k
examples of client k; T rounds. The server stores T / dt updates of every client (nobody knows who will ask).

    Ut_k = ||U_k|| * Uh_k / ||Uh_k||   (norms layer by layer, as in the released code)
    w <- w + sum_k (n_k / sum_j n_j) Ut_k   over the retained clients of the round

Deviations: the paper's further factor 1/(K-1) on the weighted mean is left out: with it the weights do not sum to one.
The released code measures the new direction from the already aggregated model; here it is measured from the model that
was sent, and calibration is per client, not on the mean. A layer whose new direction is zero keeps its recorded update.
The first replayed round uses the recorded updates as they are, since both start from the same initial model. r is a
share of the local steps, rounded up, so that it means something for one epoch too. dt = 2 and r = 1/2 are published.
Calibration off (``calibration: false``) is the paper's baseline FedAccum.

Limit: FedAccum adds up updates that were made for other models than those it has: the marks of one client on digits are
hardly forgotten, at a loss of utility (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.params import weighted_mean
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class FedEraser(UnlearningStrategy):
    """Replay the recorded rounds without the target."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        interval: int = option(2, "rounds between replayed rounds", symbol="dt", at_least=1, search=(1, 4, "int"))
        ratio: float = option(
            0.5,
            "calibration epochs over local epochs",
            symbol="r",
            above=0,
            at_most=1,
            search=(0.1, 1.0, "linear"),
            needs={"calibration": (True,)},
        )
        calibration: bool = option(True, "off: FedAccum")

    scopes = frozenset({"client"})

    @property
    def card(self) -> Card:
        """All updates of every dt-th round; retained clients calibrate."""
        online = self.config.calibration
        return Card(records="all", every=self.config.interval, storage="updates", retained_online=online)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Replay rounds 1, 1 + dt, 1 + 2 dt, ... from the initial model."""
        cfg, w = self.config, history.initial
        for t in range(1, history.rounds + 1, cfg.interval):
            n = {k: n_k for k, n_k in history.weights(t).items() if k not in request.clients}
            U = {k: history.update(t, k) for k in n}
            if U and cfg.calibration and t > 1:
                Uh = cohort.train(w, U, round=t, effort=cfg.ratio).by_client()
                U = {k: calibrate(U[k], Uh[k]) for k in Uh}
            if U:
                w = w + weighted_mean(U.values(), [n[k] for k in U])
            yield w


def calibrate(U: Params, Uh: Params) -> Params:
    """``||U|| * Uh / ||Uh||``, layer by layer; the recorded layer where the new one is zero."""
    return U.by_layer(lambda u, uh: u.norm() * uh / uh.norm() if uh.norm() > 0 else u, Uh)
