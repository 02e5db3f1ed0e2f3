"""How much evidence a run gathers, and what it may then claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fedforget.names import nearest
from fedforget.stage import later_metric


class Level(NamedTuple):
    """An evidence level.

    Args:
        code: its short name.
        seeds: the fewest seeds it needs.
        needs: what else a run must record for it: ``durability``, ``canary``.
        claim: in one sentence, what a run at this level may claim.
    """

    code: str
    seeds: int
    needs: tuple[str, ...]
    claim: str


LEVELS = {
    "smoke": Level(
        "EL0", 1, (), "The run works end to end; one seed has no error bar, so nothing is claimed about any method."
    ),
    "screen": Level(
        "EL1",
        3,
        (),
        "The direction of a gap may be claimed, not a ranking: with three seeds a 95 % interval is 2.5 standard "
        "deviations on each side. Scores stand beside their limits and are no verdict.",
    ),
    "leaderboard": Level(
        "EL2",
        5,
        ("durability",),
        "Verdicts against the oracle's floor, the score and the speed-up at equal quality may be claimed, with their "
        "intervals, for this task and request only.",
    ),
    "strong": Level(
        "EL3",
        10,
        ("durability",),
        "Small effects, side effects on single clients and drift over requests may be claimed.",
    ),
    "attack": Level(
        "EL4",
        64,
        ("durability", "canary"),
        "As at level strong, and how well an attacker with the models of the other seeds tells single examples apart "
        "(U-LiRA), the worst tenth of them too.",
    ),
    "epsilon": Level(
        "EL5",
        256,
        ("durability", "canary"),
        "As at level attack, lower bounds on epsilon over models, which can refute a guarantee and never give one, and "
        "KLOM with a floor of about 0.1.",
    ),
}


@dataclass(frozen=True)
class EvaluationConfig:
    """How much evidence a run gathers.

    Args:
        level: an evidence level, a key of `LEVELS`.
        seeds: K, the number of originals and of oracles.
        max_examples: at most this many examples in each audit set.
        durability: the audit is made again after so many ordinary rounds on the retained clients.
        relearn: rounds for which forgotten knowledge is taught again, by a returning client and from few examples.
        checkpoints: points of the oracles' training at which they are audited too: retrains stopped early.
        primary: the metric, fixed before the run, under which equivalence to retraining is tested; ``auto`` takes the
            one that the corruption was made for.

    Raises:
        ValueError: if the level is unknown or needs more seeds or rounds, or a number is out of range.
    """

    level: str = "screen"
    seeds: int = 3
    max_examples: int = 2000
    durability: tuple[int, ...] = ()
    relearn: int = 0
    checkpoints: int = 8
    primary: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "durability", tuple(sorted(int(rounds) for rounds in self.durability)))
        if self.level not in LEVELS:
            raise ValueError(f"evaluation level {self.level!r} is unknown{nearest(self.level, LEVELS)}")
        level = LEVELS[self.level]
        if self.seeds < level.seeds:
            raise ValueError(
                f"evaluation seeds={self.seeds} is too few for level {self.level!r}, which needs at least {level.seeds}"
            )
        if "durability" in level.needs and not self.durability:
            raise ValueError(
                f"evaluation level {self.level!r} audits again after ordinary rounds; add evaluation.durability=[5,20]"
            )
        for name, least in (("max_examples", 1), ("relearn", 0), ("checkpoints", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation {name}={getattr(self, name)} must be at least {least}")
        if any(rounds < 1 for rounds in self.durability):
            raise ValueError(f"evaluation durability={list(self.durability)} must be numbers of rounds, at least 1")

    @property
    def claim(self) -> str:
        """What a run at this level may claim."""
        return LEVELS[self.level].claim

    def check(self, corruption: str, holdout: float) -> None:
        """Refuse a level or a primary metric whose inputs a run does not record.

        Args:
            corruption: its kind.
            holdout: share of each client's examples that it never trains on.

        Raises:
            ValueError: saying what to add.
        """
        if "canary" in LEVELS[self.level].needs and corruption != "canary":
            raise ValueError(f"evaluation level {self.level!r} needs coin-flipped canaries; add corruption=canary")
        if self.primary == "auto":
            return
        from fedforget.evaluation import FAMILIES, LATER, MATCHED, NEEDED  # the metrics that there are; loads torch

        later, metric = later_metric(self.primary)
        if self.primary.startswith("+") and not later.isdigit():
            raise ValueError(
                f"evaluation.primary={self.primary} must name a number of rounds, as +5/forget/margin does"
            )
        if later and int(later) not in self.durability:
            raise ValueError(
                f"evaluation.primary={self.primary} needs the audit after {later} rounds; "
                f"add {later} to evaluation.durability"
            )
        if later and not metric.startswith(LATER):
            raise ValueError(
                f"evaluation.primary={self.primary} is not measured again later; use one of {', '.join(LATER)}"
            )
        family = metric.partition("/")[0]
        needed = {"canary": "canary", "trigger": "trigger", "noise": "noise", "confusion": "label_swap"}.get(family)
        if needed and corruption != needed:
            raise ValueError(f"evaluation.primary={self.primary} was not recorded; add corruption={needed}")
        if family not in FAMILIES:
            raise ValueError(
                f"evaluation.primary={self.primary} is unknown; it starts with one of {', '.join(FAMILIES)}"
            )
        names = [f"{family}/{name}" for name in FAMILIES[family]]
        if metric not in names:
            raise ValueError(f"evaluation.primary={self.primary} is unknown; choose one of {', '.join(names)}")
        fewest = NEEDED.get(metric, 1)
        if self.seeds < fewest:
            raise ValueError(
                f"evaluation.primary={self.primary} compares with oracles of other seeds; use evaluation.seeds="
                f"{fewest} at least, not {self.seeds}"
            )
        if family in MATCHED and not holdout:
            raise ValueError(
                f"evaluation.primary={self.primary} needs data of the leaving client that it never trains on; set "
                "partition.holdout above 0"
            )
        if family == "relearn" and not self.relearn:
            raise ValueError(f"evaluation.primary={self.primary} needs evaluation.relearn, for instance 5")
