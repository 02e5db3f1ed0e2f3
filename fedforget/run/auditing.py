"""What the audit asks of every model, and where the answers lie: one index entry for each question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedforget.cohort import Answers, TooFewClients
from fedforget.data import audit_sets
from fedforget.evaluation import ORIGINAL
from fedforget.metrics.representation import swap_head
from fedforget.run import addresses
from fedforget.run.setting import cohort_of
from fedforget.run.trajectories import Model, Trajectories
from fedforget.stage import HEAD, LEFT, Kind, Stage
from fedforget.store import save_tensors

PATH = 4  # steps of equal length from the original to a model, between which the loss is measured
ASKED_BYTES = 1 << 26  # of models in one message of an audit, about


@dataclass(frozen=True)
class Question:
    """What the audit asks of a model.

    Args:
        label: whose model it is.
        stage: what became of it before it is asked.
        model: the model.
        sets: the audit sets.
        marks: whether those that the corruption is made for are asked too.
    """

    label: str
    stage: Stage
    model: Model
    sets: tuple[str, ...]
    marks: bool = True


class Auditing:
    """Asks the models of a run.

    Args:
        trajectories: makes the models of further rounds.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self.trajectories, self.setting, self.progress = trajectories, trajectories.setting, trajectories.progress

    def audits(
        self, k: int, label: str, i: int, model: Model, original: Model, learned_as: int | None = None
    ) -> list[dict]:
        """Index entries of a model after request ``i``: as it is, after ordinary rounds, and after relearning.

        Args:
            k: the seed under whose coins, and beside whose original and oracle, the model is audited.
            label: whose model it is.
            i: the request.
            model: the model.
            original: the original of seed ``k``.
            learned_as: the seed whose streams its further rounds follow; None: ``k``.

        Raises:
            AuditFailed: if no node could say what a model answers.
        """
        own = k if learned_as is None else learned_as
        return list(self.entries(k, i, self._questions(k, label, i, model, original, own)))

    def entries(self, k: int, i: int, questions: Iterable[Question]) -> Iterator[dict]:
        """The index entry of each question, in order; what is not answered on file is asked, many at a time.

        Raises:
            AuditFailed: if no node could say what a model answers.
        """
        waiting: list[Question] = []
        for question in questions:
            waiting.append(question)
            if sum(each.model.params.flat.nbytes for each in waiting) >= ASKED_BYTES:
                yield from self._answered(k, i, waiting)
                waiting = []
        yield from self._answered(k, i, waiting)

    def _questions(self, k: int, label: str, i: int, model: Model, original: Model, own: int) -> Iterator[Question]:
        """What `audits` asks; models of further rounds are made when they are asked for."""
        evaluation = self.setting.config.evaluation
        sets = (*audit_sets.FIRST, *(audit_sets.DRAWN if k == 0 else ()))  # one seed's regions are drawn
        yield Question(label, LEFT, model, sets)
        if label != ORIGINAL:
            swapped = replace(model, params=swap_head(model.params, original.params))
            yield Question(label, HEAD, swapped, ("forget",), marks=False)
        if label != ORIGINAL and evaluation.durability:
            way = model.params - original.params
            for step in range(1, PATH):
                between = replace(model, params=original.params + (step / PATH) * way)
                yield Question(label, Stage("path", step), between, ("test",), marks=False)
        later = self.trajectories.later
        try:
            taught = range(1, evaluation.relearn + 1)
            for rounds, model_then in later(own, i, model, sorted({*evaluation.durability, *taught}), "+"):
                if rounds in evaluation.durability:
                    yield Question(label, Stage("later", rounds), model_then, audit_sets.LATER)
                if rounds in taught:
                    yield Question(label, Stage("retain", rounds), model_then, ("rest",), marks=False)
            kinds: tuple[Kind, ...] = ("rejoin", "few")
            for kind in kinds:
                for rounds, model_then in later(own, i, model, taught, kind):
                    yield Question(label, Stage(kind, rounds), model_then, ("rest",), marks=False)
        except TooFewClients as error:
            self.progress.note(f"{label}, seed {k}: no further rounds are possible from this model ({error})")

    def _answered(self, k: int, i: int, questions: Sequence[Question]) -> list[dict]:
        """Index entries of models whose answers are on file, where they are put if they are not there."""
        setting, asked, keys = self.setting, {}, []
        for question in questions:
            marked = audit_sets.planted(setting.config.corruption.kind) if question.marks else ()
            sets = dict.fromkeys((*question.sets, *marked), setting.config.evaluation.max_examples)
            keys.append(addresses.answers(setting, k, i, question.model.params, sets))
            asked[keys[-1]] = question.model.params, sets
        paths = {key: setting.store.folder("outputs", key) / "outputs.safetensors" for key in asked}
        with ExitStack() as locks:
            for key in sorted(asked):  # in one order, so that two runs never wait for each other
                locks.enter_context(setting.store.lock("outputs", key))
            missing = [key for key in asked if self.trajectories.stored(paths[key]) is None]
            models = [asked[key] for key in missing]
            answers = cohort_of(setting, setting.seeds(k), i).evaluate_all(models) if models else []
            for key, found in zip(missing, answers, strict=True):
                save_tensors(paths[key], _tensors(found), {})
        return [self._indexed(k, i, each, paths[key]) for each, key in zip(questions, keys, strict=True)]

    def _indexed(self, k: int, i: int, question: Question, path: Path) -> dict[str, Any]:
        """The index entry of a model whose answers lie at ``path``."""
        model, root = question.model, self.setting.store.root
        relative = Path(model.path).relative_to(root) if model.path else None
        return {
            "request": i,
            "label": question.label,
            "seed": k,
            "stage": str(question.stage),
            "model": model.key,
            "outputs": str(path.relative_to(root)),
            "weights": [str(relative), model.tensor],
            "cost": model.cost.to_dict(),
            "residues": model.residues,
            "notes": model.notes,
        }


def _tensors(found: dict[str, Answers]) -> dict[str, torch.Tensor]:
    """Answers as they are stored: without a model's name, because another with the same parameters has the same."""
    # Copied, because from_numpy gives an empty array a stride of 0, and then it cannot be stored.
    return {
        f"{name}/{part}": torch.from_numpy(array).clone(memory_format=torch.contiguous_format)
        for name, mine in found.items()
        for part, array in mine._asdict().items()
        if array is not None
    }
