"""Grouped memorisation: does unlearning work for the examples that were memorised, or only for those that were not?

How much an example was memorised is ``p_y(M; x) - p_y(O; x)``, M the original and O the oracle of a seed: the label's
probability that seeing the example added. Source: groups and shares are those of arXiv 2605.24545 (KDD 2026, summaries
and released code), which has one oracle, so that its groups are partly noise, and scored by the noise that made them.
Here a seed's models are scored in groups that the *other* seeds define (cross-fitting).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """What `by_memorisation` found in one group of examples; each number one a seed.

    Args:
        memorised: mean over the group of ``p_y(M) - p_y(O)`` of the seed itself; [-1, 1], higher = more to forget.
        gap: accuracy of the unlearned model minus that of the oracle; [-1, 1], 0 = as after a retrain.
        failure: "unlearning failure", the share that the unlearned model has right and the oracle wrong; [0, 1].
        loss: "generalisation loss", the share that it has wrong and the oracle right; [0, 1]. ``gap = failure - loss``,
            and what is left of 1 is answered with the same success: the paper's consistency.
    """

    memorised: list[float]
    gap: list[float]
    failure: list[float]
    loss: list[float]


def by_memorisation(
    original: Tensor, oracle: Tensor, right: Tensor, oracle_right: Tensor, groups: int = 3
) -> list[Group]:
    """The groups, from what was memorised least to what was memorised most.

    For each seed examples are ranked by the mean over the other seeds of ``original - oracle`` and cut into groups of
    nearly equal size; equals keep their order.

    Args:
        original: ``[K, n]`` label probabilities ``p_y`` of K >= 2 originals on n >= ``groups`` forgotten examples.
        oracle: the same of the oracles of these seeds, in the same order.
        right: bool ``[K, n]``, whether the unlearned models of these seeds predict the label.
        oracle_right: the same of the oracles.
        groups: their number, at least 1.

    Raises:
        ValueError: if the shapes differ, or there are fewer than two seeds or fewer examples than groups.
    """
    shapes = [tuple(side.shape) for side in (original, oracle, right, oracle_right)]
    if original.ndim != 2 or len(set(shapes)) > 1 or shapes[0][0] < 2 or not 1 <= groups <= shapes[0][1]:
        raise ValueError(
            f"{groups} groups of tables of shapes {', '.join(map(str, shapes))} cannot be made; they must be equal, "
            "(seeds, examples), with at least 2 seeds and an example for each group"
        )
    apart = original.double() - oracle.double()
    elsewhere = apart.sum(0) - apart
    failed, lost = (right & ~oracle_right).double(), (~right & oracle_right).double()
    columns: list[list[list[float]]] = [[[], [], [], []] for _ in range(groups)]
    for k, ranked in enumerate(elsewhere.argsort(dim=1, stable=True)):
        for column, places in zip(columns, ranked.tensor_split(groups), strict=True):
            failure, loss = (table[k, places].mean().item() for table in (failed, lost))
            found = (apart[k, places].mean().item(), failure - loss, failure, loss)
            for numbers, number in zip(column, found, strict=True):
                numbers.append(number)
    return [Group(*column) for column in columns]
