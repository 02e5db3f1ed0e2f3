"""Retention-based masking (RBM): reset the weights that the retained data does not hold on to, then fine-tune.

Paper: Ding, Sharma, Chen, Xu and Ji, "Understanding Fine-tuning in Approximate Unlearning: A Theoretical Perspective",
TMLR 2025, arXiv 2410.03833.
Source: abstract only; the paper could not be read beyond its idea.

Its counterpart ``saliency: forget`` resets the weights to which the forgotten data is most sensitive, as SalUn chooses
them (Fan et al., ICLR 2024, arXiv 2310.12508).

Symbols: w_o original; L loss; D_r, D_f retained and forgotten data; s saliency; m mask; rho share of weights kept;
w_init zero or fresh weights; R rounds of fine-tuning.

    s = |grad L(w_o; D_r)|,  m = 1[s >= gamma]   or, forget-based,  s = |grad L(w_o; D_f)|,  m = 1[s < gamma]
    w_start = m w_o + (1 - m) w_init,  then R ordinary rounds on D_r with all weights free

Deviations: all but "saliency from the remaining data" is this project's choice: the mask keeps round(rho d) weights
exactly, the first in the vector's order among equals; the gradient is the pooled signed mean, of which the server takes
the absolute value (secure aggregation would do); "fresh" weights are those the original started from. The round of the
gradient does not count in the numbering of rounds that fixes client randomness, so fine-tuning draws what `finetune`
draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class RetentionMask(UnlearningStrategy):
    """Keep the weights that matter to the retained data, reset the others, fine-tune."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        saliency: str = option("retain", "retain (RBM) or forget data", symbol="s", choices=("retain", "forget"))
        keep: float = option(
            0.5, "share of the weights that is kept", symbol="rho", above=0, at_most=1, search=(0.05, 0.95, "linear")
        )
        start: str = option("fresh", "reset weights: zero or fresh", symbol="w_init", choices=("zero", "fresh"))
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """The forgotten data's owner is needed for a forget-based mask; retained clients are, but for that alone."""
        forget = self.config.saliency == "forget"
        return Card(target_online=forget, retained_online=not forget or self.config.rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for the saliency, then R rounds from the reset model."""
        cfg, w_o = self.config, history.final
        s = cohort.gradient(w_o, split=cfg.saliency).flat.abs()
        m = mask(s if cfg.saliency == "retain" else -s, cfg.keep)
        w_init = history.initial if cfg.start == "fresh" else w_o * 0
        w = Params(torch.where(m, w_o.flat, w_init.flat), w_o.layout)
        yield w
        yield from self.learn(cohort, w, cfg.rounds, first_round=history.rounds + 1)


def mask(s: Tensor, rho: float) -> Tensor:
    """True at the ``round(rho d)`` largest entries of ``s [d]``, the first ones among equals."""
    kept = s.argsort(descending=True, stable=True)[: round(rho * len(s))]
    return torch.zeros(len(s), dtype=torch.bool).index_fill_(0, kept, True)
