"""The server's only door to clients.

A strategy asks its `Cohort` for work by client id; the cohort finds the nodes that host those clients, sends each node
one message, retries what failed, counts the cost, and refuses what the strategy's assumption card did not declare. To
Flower's own learners the cohort is a `Grid` with one node a client.

An exchange is a round, but for one that could have been sent together with the exchange before: it has the same number
and sends the same vectors, so that nothing the other's answers say can be in it, and asks nobody for the same split
again. Such parts of a round (ascent on what is forgotten, descent on what stays) are billed in bytes, steps and
examples, and count as one round.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedforget import messages, routines
from fedforget.attendance import Attendance
from fedforget.checks import Asked, miscount, misfit, said
from fedforget.core.exact import exact_scale
from fedforget.data import audit_sets
from fedforget.data.audit_sets import TEST, TEST_CHUNK
from fedforget.data.facts import DataFacts
from fedforget.description import read_description
from fedforget.exchange import Card, Exchange, Journal, Pool, Replies, Reply
from fedforget.ledger import Cost
from fedforget.messages import Task, Work
from fedforget.params import Layout, Params
from fedforget.request import SCOPES, UnlearningRequest
from fedforget.routines import Option, Routine, hessian_layout, name_of
from fedforget.seeds import Seeds

TRAIN_ROUTINE = name_of(routines.train)
GROUP = {"cpu": 12, "cuda": 32}  # most clients in a group: more no longer fit a core's cache; on a GPU not measured
LATE = "did not answer in time"


class Answers(NamedTuple):
    """What a model answers on an audit set of ``n`` examples.

    Args:
        logits: ``[n, classes]``.
        labels: ``[n]``.
        clients: ``[n]``, who holds each example; -1 for the test set.
        rows: ``[n]``, where each stands in its holder's data, or the number of a point: the same example has the same
            row for every model.
        included: ``[n]``, 1, or 0 for a candidate canary that the trajectory was not trained on.
        features: what `fedforget.data.audit_sets` says of the set; ``None`` for a set without.
    """

    logits: NDArray
    labels: NDArray
    clients: NDArray
    rows: NDArray
    included: NDArray
    features: NDArray | None

    @classmethod
    def together(cls, several: Sequence[Answers]) -> Answers:
        """The answers of several holders as one audit set, in their order."""
        logits, labels, clients, rows, included = (
            np.concatenate(arrays) for arrays in zip(*(answers[:5] for answers in several), strict=True)
        )
        features = [answers.features for answers in several if answers.features is not None]
        return cls(logits, labels, clients, rows, included, np.concatenate(features) if features else None)


@dataclass(frozen=True)
class _Part:
    """What an exchange asked, and those before it in its round.

    Args:
        round: the round's number.
        sent: the vectors that it sent.
        asked: clients, each with the split it worked on.
        held: bytes that came back, and that were sent beside the model.
    """

    round: int
    sent: Mapping[str, Params]
    asked: frozenset[tuple[int, str]]
    held: int = 0

    def continues(self, before: _Part | None) -> bool:
        """Whether it could have been sent together with what came before."""
        return (
            before is not None
            and before.round == self.round
            and before.asked.isdisjoint(self.asked)
            and before.sent.keys() == self.sent.keys()
            and all(vector.equals(before.sent[name]) for name, vector in self.sent.items())
        )


class TooFewClients(RuntimeError):
    """So many clients failed in a round that its result would mean nothing."""


class AuditFailed(RuntimeError):
    """No node could say what a model answers: nothing is known against the model, nor against what made it."""


@dataclass(frozen=True)
class Federation:
    """Who is there: what the first round (``query.describe``) found.

    Args:
        hosts: the clients that each node hosts, by node id.
        num_train: size of each client's training split, by client id.
        class_counts: examples of each class in that split, by client id.
        about: what the first node says of data and devices; all nodes have the same data and type of device.
    """

    hosts: Mapping[int, frozenset[int]]
    num_train: Mapping[int, int]
    class_counts: Mapping[int, Sequence[int]]
    about: Mapping[str, Any]

    @cached_property
    def facts(self) -> DataFacts:
        """What the first node says of the data."""
        return DataFacts.from_dict(self.about["facts"])

    @property
    def device(self) -> str:
        """Type of the device of all nodes: ``cpu`` or ``cuda``."""
        return _device_type(self.about)

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """All client ids, ascending."""
        return tuple(sorted(self.num_train))

    def kept(self, requests: Iterable[UnlearningRequest]) -> dict[int, int]:
        """How many training examples each client keeps after ``requests``, candidate canaries included: if any, by id.

        What several requests name counts once, unless one names it by its class and another by its position, because
        the server does not know the class of a position: then fewer may be counted than are kept.
        """
        named: dict[str, set] = {scope: set() for scope in SCOPES}
        for request in requests:
            named[request.scope].update(request.targets)
        samples = Counter(client for client, _ in named["sample"])
        kept = {}
        for client in self.clients:
            of_classes = sum(self.class_counts[client][label] for label in named["class"])
            left = self.num_train[client] - of_classes - samples[client]
            if left > 0 and client not in named["client"]:
                kept[client] = left
        return kept


def _device_type(about: Mapping[str, Any]) -> str:
    return about["device"].partition(":")[0]


def describe(grid: Grid, task: Task, timeout: float = 600.0) -> Federation:
    """Ask every node which clients it hosts.

    Raises:
        ValueError: if a node does not answer, cannot load the data, or has other data or another type of device than
            the rest.
    """
    nodes = sorted(grid.get_node_ids())
    content = messages.pack(Work(task.to_json(), Seeds(task.data.seed)))
    asked = [Message(content, node, messages.DESCRIBE) for node in nodes]
    hosts: dict[int, frozenset[int]] = {}
    num_train: dict[int, int] = {}
    counts: dict[int, Sequence[int]] = {}
    about: dict[str, Any] = {}
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(asked, timeout=timeout)}
    for node in nodes:
        if node not in replies:
            raise ValueError(f"a SuperNode did not describe itself within {timeout:g} s")
        if replies[node].has_error():
            raise ValueError(f"a SuperNode could not describe itself: {replies[node].error.reason}")
        node_about, clients = _description(replies[node])
        if about and node_about["data"] != about["data"]:
            raise ValueError("two SuperNodes hold different data for the same task; give them the same files")
        if about and _device_type(node_about) != _device_type(about):
            raise ValueError(
                f"SuperNodes compute on {_device_type(about)} and on {_device_type(node_about)}, so that the numbers "
                "would depend on who answers; set engine.device=cpu"
            )
        about = about or node_about
        hosts[node] = frozenset(clients)
        for client, class_counts in clients.items():
            if counts.setdefault(client, class_counts) != class_counts:
                raise ValueError(f"two SuperNodes hold different data of client {client}; a client has one home")
            num_train[client] = sum(class_counts)
    if not num_train:
        raise ValueError(f"none of {len(nodes)} SuperNodes hosts a client")
    return Federation(hosts, num_train, counts, about)


def _description(reply: Message) -> tuple[dict[str, Any], dict[int, list[int]]]:
    """What a node says of itself, and the class counts of the clients that it hosts.

    Raises:
        ValueError: if it cannot be read, or says what is wrong with the node.
    """
    try:
        _, report = messages.unpack_reply(reply.content)
        about, clients = read_description(report)
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"a SuperNode's description of itself cannot be read ({said(problem)}); "
            "run the same version of fedforget on all of them"
        ) from problem
    if "error" in about:
        raise ValueError(said(about["error"]))
    return about, clients


@dataclass
class Cohort(Grid):
    """The clients of one trajectory, as a strategy sees them.

    Args:
        grid: carries the messages.
        federation: who is there.
        task: data and model.
        layout: how a flat vector divides into layers.
        seeds: the trajectory's random streams.
        fraction: share of all clients asked in a round.
        min_share: a round needs at least this share of the clients asked.
        timeout: seconds that a round may take; at half of it, what has not answered is asked again elsewhere.
        removed: requests served before.
        request: the request being served; ``None`` while learning.
        card: what may be asked; ``None`` allows everything (learning).
        journal: remembers exchanges; ``None`` to remember nothing.
        planned: requests that clients know of while they learn.
        shelves: the folder in which clients keep vectors of this trajectory; empty: they keep none.
        next_round: the number of the next round.
        progress: called after each exchange with the number of the round.
        separate: for a learner that only averages, the clients whose updates are wanted one by one all the same;
            ``None``: the learner must see every update.
        held: most bytes that the server held at once, see `hold`.
        attendance: whether the request's targets took part in what they were asked.
    """

    grid: Grid
    federation: Federation
    task: Task
    layout: Layout
    seeds: Seeds
    fraction: float = 1.0
    min_share: float = 0.5
    timeout: float = 600.0
    removed: tuple[UnlearningRequest, ...] = ()
    request: UnlearningRequest | None = None
    card: Card | None = None
    journal: Journal | None = None
    planned: tuple[UnlearningRequest, ...] = ()
    shelves: str = ""
    next_round: int = 1
    progress: Callable[[int], None] = lambda round: None
    separate: Collection[int] | None = None
    cost: Cost = Cost()
    notes: list[str] = field(default_factory=list)
    contacted: set[int] = field(default_factory=set)
    last_replies: Replies = Replies()
    held: int = 0
    attendance: Attendance = field(default_factory=Attendance)
    _exchanges: int = 0
    _part: _Part | None = None
    _aside: int = 0
    _counted: dict[tuple[UnlearningRequest, ...], Mapping[int, int]] = field(default_factory=dict)

    # ------------------------------------------------------------------ who

    @property
    def targets(self) -> tuple[int, ...]:
        """Clients that hold data which the request names."""
        if self.request is None:
            return ()
        before, after = self._kept(self.removed), self._kept((*self.removed, self.request))
        return tuple(client for client, number in before.items() if number > after.get(client, 0))

    @property
    def retained(self) -> tuple[int, ...]:
        """Clients that keep at least one training example once the request is served."""
        return tuple(self._keeping)

    @property
    def _classes(self) -> int:
        return int(self.federation.about["num_classes"])

    @property
    def _keeping(self) -> Mapping[int, int]:
        """What the retained clients keep."""
        return self._kept(self.removed if self.request is None else (*self.removed, self.request))

    def _kept(self, requests: tuple[UnlearningRequest, ...]) -> Mapping[int, int]:
        """`Federation.kept`, counted once: every exchange asks for it several times."""
        if requests not in self._counted:
            self._counted[requests] = self.federation.kept(requests)
        return self._counted[requests]

    def sample(self, round: int) -> tuple[int, ...]:
        """The clients asked in ``round``: a share of all clients, drawn alike in every trajectory, minus the forgotten.

        Every client draws a priority in each round, and the lowest are asked. A cohort that a request leaves empty is
        replaced by the retained client of lowest priority, so that every round does something.

        Raises:
            ValueError: if no client retains any data.
        """
        clients, retained = self.federation.clients, self._keeping
        if not retained:
            raise ValueError("no client retains any data, so there is nobody to ask")
        number = asked_of(self.fraction, len(clients))
        order = self.seeds.numpy("cohort", round).permutation(len(clients))
        chosen = [client for client in (clients[place] for place in order[:number]) if client in retained]
        later = (clients[place] for place in order[number:])
        return tuple(sorted(chosen or [next(client for client in later if client in retained)]))

    # ------------------------------------------------------------------ what

    def train(
        self,
        model: Params,
        clients: Iterable[int] | None = None,
        *,
        routine: Routine = routines.train,
        split: str = "retain",
        round: int | None = None,
        vectors: Mapping[str, Params] | None = None,
        layout: Layout | None = None,
        **options: Option,
    ) -> Replies:
        """One round: clients run a routine from ``model`` on a split of their data.

        Args:
            model: the parameters sent.
            clients: who is asked; by default `sample` of the round.
            routine: what they compute, see `fedforget.routines`.
            split: ``retain`` (what stays once the request is served), ``forget`` (what it names), ``train`` (both).
            round: the number of the round, which fixes cohort, randomness and learning rate; by default the next one.
            vectors: further parameter vectors for the routine, by name.
            layout: the layout of what the routine returns, if that is not the model's.
            options: settings for the routine: numbers, texts or tuples of them; those that name fields of the recipe
                (``lr``, ``epochs``) replace them.

        Returns:
            The replies in client-id order; a client without data in the split, or that failed twice, has none.

        Raises:
            TooFewClients: if fewer than ``min_share`` of the clients answered.
            ValueError: if the strategy's card does not allow to ask them this, or clients could not find the routine.
        """
        return self._round(model, clients, None, routine, split, round, vectors, layout, options)

    def reduce(
        self,
        model: Params,
        clients: Iterable[int] | None = None,
        *,
        routine: Routine = routines.train,
        split: str = "retain",
        round: int | None = None,
        vectors: Mapping[str, Params] | None = None,
        layout: Layout | None = None,
        **options: Option,
    ) -> Params:
        """As `train`, where only the mean of the replies is wanted: the same numbers as ``train(...).mean()``.

        Nodes then answer with the sum over their clients, not with a vector for each.

        Raises:
            ValueError: if nobody answered with a vector; else as `train`.
        """
        return self._round(model, clients, (), routine, split, round, vectors, layout, options).mean()

    def _round(
        self,
        model: Params,
        clients: Iterable[int] | None,
        separate: Collection[int] | None,
        routine: Routine,
        split: str,
        round: int | None,
        vectors: Mapping[str, Params] | None,
        layout: Layout | None,
        options: Mapping[str, Option],
    ) -> Replies:
        """One exchange; the updates of clients not in ``separate`` come pooled (with ``None`` nobody's)."""
        round = self.next_round if round is None else round
        self.next_round = max(self.next_round, round + 1)
        asked = self.sample(round) if clients is None else tuple(sorted(clients))
        split = "train" if split == "retain" and self.request is None else split
        self._check_card(asked, split)
        self.contacted.update(asked)
        pooled = () if separate is None else tuple(client for client in asked if client not in separate)
        scale = exact_scale(sum(self.federation.num_train[client] for client in asked))
        work = Work(
            self.task.to_json(),
            self.seeds,
            name_of(routine),
            round,
            split,
            asked,
            self.removed,
            self.request,
            options,
            pooled=pooled,
            scale=scale,
            planned=self.planned,
            shelves=self.shelves,
        )
        sent, layout = {**(vectors or {}), "model": model}, layout or self.layout
        part = _Part(round, sent, frozenset((client, split) for client in asked))
        begins = not part.continues(self._part)
        self.last_replies, left_out = self._remembered(work, lambda: self._exchange(work, sent, layout, begins))
        self.attendance.count(round, self._forgetting(asked, split), left_out)
        self._count_held(part, begins)
        self.progress(round)
        return self.last_replies

    def hold(self, *vectors: Params) -> None:
        """Say what the server keeps beside the model from now on, that this exchange's vectors and answers are not.

        The ledger counts it (`held`) in every round until it is said anew.
        """
        self._aside = sum(map(_size, vectors))

    def _count_held(self, part: _Part, begins: bool) -> None:
        """Raise the peak of what the server held: vectors sent beside the model, answers, and what is kept aside.

        A sum over clients counts as one answer, in the precision of the model.
        """
        answers = sum(_size(reply.update) for reply in self.last_replies)
        if self.last_replies.pool:
            answers += self.last_replies.pool.layout.size * part.sent["model"].flat.element_size()
        if begins:
            mine = sum(_size(vector) for name, vector in part.sent.items() if name != "model") + answers
        else:
            assert self._part is not None, "the first exchange begins a round"
            mine = self._part.held + answers
            part = replace(part, asked=part.asked | self._part.asked)
        self._part = replace(part, held=mine)
        self.held = max(self.held, mine + self._aside)

    def gradient(self, model: Params, clients: Iterable[int] | None = None, split: str = "retain") -> Params:
        """The mean gradient over the clients' splits, which equals the pooled gradient: a round of its own.

        Clients are all that hold such data, unless named.
        """
        return self._pooled(routines.gradient, model, clients, split)

    def hvp(self, model: Params, v: Params, clients: Iterable[int] | None = None, split: str = "retain") -> Params:
        """The pooled Hessian-vector product ``H v`` over the clients' splits: a round of its own, as `gradient`."""
        return self._pooled(routines.hvp, model, clients, split, {"v": v})

    def fisher(self, model: Params, clients: Iterable[int] | None = None, split: str = "retain") -> Params:
        """The diagonal of the pooled empirical Fisher matrix: a round of its own, as `gradient`."""
        return self._pooled(routines.fisher, model, clients, split)

    def hessian(self, model: Params, round: int | None = None) -> tuple[Params, torch.Tensor]:
        """The pooled gradient ``[d]`` and Hessian ``[d, d]`` of what all clients retain.

        Each sends ``d + d^2`` numbers. It is a round of its own, unless ``round`` is that of the exchange before, in
        which the same model was sent.
        """
        layout = hessian_layout(self.layout.size)
        both = self.reduce(model, self.retained, routine=routines.hessian, layout=layout, round=round)
        g, H = both.layers().values()
        return Params(g, self.layout), H

    def _pooled(
        self,
        routine: Routine,
        model: Params,
        clients: Iterable[int] | None,
        split: str,
        vectors: Mapping[str, Params] | None = None,
    ) -> Params:
        """The mean over examples of what a routine returns: a client's mean, weighted by its number of examples."""
        holders = self.targets if split == "forget" else self.retained
        asked = holders if clients is None else clients
        return self.reduce(model, asked, routine=routine, split=split, vectors=vectors)

    def evaluate(self, model: Params, sets: Mapping[str, int]) -> dict[str, Answers]:
        """What a model answers on the audit sets; an audit is not billed and not a round.

        Args:
            model: the model.
            sets: most examples wanted, by audit set, see `fedforget.data.audit_sets`; those of retained clients are
                spread evenly.

        Raises:
            AuditFailed: if a node cannot evaluate, and no other one could in its place.
        """
        return self.evaluate_all([(model, sets)])[0]

    def evaluate_all(self, asked: Sequence[tuple[Params, Mapping[str, int]]]) -> list[dict[str, Answers]]:
        """As `evaluate`, for several models, each with its audit sets, in one exchange; in the order given.

        Raises:
            AuditFailed: if a node cannot evaluate, and no other one could in its place.
        """
        parts = [
            {name: [(*part, number) for part in self._parts(name, most)] for name, most in sets.items()}
            for number, (_, sets) in enumerate(asked)
        ]
        every = [part for of_model in parts for of_set in of_model.values() for part in of_set]
        answers = iter(self._evaluate_parts([model for model, _ in asked], every))
        found = [{name: [next(answers) for _ in of_set] for name, of_set in of_model.items()} for of_model in parts]
        return [{name: Answers.together(mine) for name, mine in of_model.items() if mine} for of_model in found]

    def _parts(self, name: str, most: int) -> list[tuple[int, str, int, int]]:
        asked = audit_sets.find(name)
        most = asked.most(most)
        if asked.holder == "test":
            if asked.points:
                return [(TEST, name, 0, most)]
            total = min(most, int(self.federation.about["num_test"]))
            return [(TEST, name, i, min(i + TEST_CHUNK, total)) for i in range(0, total, TEST_CHUNK)]
        if asked.asked == "drawn":
            return [(client, name, 0, most) for client in self.targets[:1]]
        clients = self.retained if asked.holder == "retained" else self.targets
        if asked.features == "layers":
            clients = clients[:most]
        share = -(-most // max(1, len(clients)))
        return [(client, asked.split, 0, share) for client in clients]

    # ------------------------------------------------------------------ how

    def _check_card(self, clients: tuple[int, ...], split: str) -> None:
        for client in clients:
            if client not in self.federation.num_train:
                last = self.federation.clients[-1]
                raise ValueError(f"client {client} does not exist; there are clients 0 to {last}")
        if self.card is None or not clients:
            return
        gone = set(self.targets).difference(self.retained)
        if (split != "retain" or gone.intersection(clients)) and not self.card.target_online:
            raise ValueError("this strategy asks for forgotten data, but its card does not say target_online=True")
        if split != "forget" and set(clients) - gone and not self.card.retained_online:
            raise ValueError("this strategy asks retained clients, but its card says retained_online=False")

    def _forgetting(self, clients: Collection[int], split: str) -> set[int]:
        """Those of the clients that are asked as targets: with what is to be forgotten, or although they are gone."""
        targets = set(self.targets).intersection(clients)
        return targets.difference(self.retained) if split == "retain" else targets

    def _most(self, split: str) -> Mapping[int, int]:
        """Most training examples that each client can have in a split, as far as the server knows."""
        requests = self.removed if self.request is None else (*self.removed, self.request)
        if {"class", "sample"} <= {request.scope for request in requests}:  # they may name the same example
            return self.federation.num_train
        before, after = self._kept(self.removed), self._kept(requests)
        if split == "retain":
            return after
        if split in ("forget", "few"):
            return {client: number - after.get(client, 0) for client, number in before.items()}
        return before

    def _remembered(self, work: Work, exchange: Callable[[], Exchange]) -> tuple[Replies, Mapping[int, str]]:
        """The replies of an exchange, and who was left out of it and why."""
        self._exchanges += 1
        known = self.journal.get(self._exchanges) if self.journal else None
        replies, cost, left_out = known or exchange()
        if self.journal and known is None:
            self.journal.put(self._exchanges, (replies, cost, left_out))
        self.cost += cost
        self.notes += _notes(work.round, left_out)
        return replies, left_out

    def _exchange(self, work: Work, vectors: Mapping[str, Params], layout: Layout, begins: bool) -> Exchange:
        content = messages.pack(work, vectors)
        payload = sum(len(array.data) for array in content.array_records[messages.ARRAYS].values())
        known = self._asked(work, vectors, layout)
        good: dict[int, Reply] = {}
        weights: dict[int, int] = {}  # of the clients in the pool
        losses: dict[int, float] = {}
        pools: list[NDArray] = []
        billed: list[Mapping[str, Any]] = []
        reasons = dict.fromkeys(work.clients, LATE)
        tried: dict[tuple[int, ...], int] = {}
        groups = self._groups(work)
        for seconds in self._attempts():
            # A group is asked again as a whole: the numbers of a stack depend on who is in it.
            missing = [group for group in groups if not reasons.keys().isdisjoint(group)]
            # Those of a group that did answer do not answer twice.
            wanted = replace(work, pooled=tuple(client for client in work.pooled if client in reasons))
            reasons, start = dict.fromkeys(reasons, LATE), time.monotonic()
            for asked, arrays, report in self._ask(content, wanted, missing, tried, seconds):
                known = replace(known, seconds=time.monotonic() - start)
                problems = self._problems(asked, arrays, report, wanted, known)
                added = False
                for client in asked:
                    if client not in reasons:
                        continue
                    if problems[client]:
                        reasons[client] = problems[client]
                        continue
                    del reasons[client]
                    entry, vector = report[str(client)], arrays.get(str(client))
                    if entry.get("pooled"):
                        added = True
                        weights[client], losses[client] = entry["num_examples"], entry["loss"]
                    elif vector is None:  # it holds no such data
                        continue
                    else:
                        update = Params(torch.from_numpy(np.array(vector)), layout)
                        good[client] = Reply(client, update, entry["num_examples"], entry["loss"])
                    billed.append(entry)
                if added:
                    pools.append(arrays[messages.POOL])
            if not reasons:
                break
        if len(work.clients) - len(reasons) < self.min_share * len(work.clients):
            raise TooFewClients(
                f"round {work.round}: only {len(work.clients) - len(reasons)} of {len(work.clients)} clients answered, "
                f"fewer than learning.min_share={self.min_share:g}; first failure: {_notes(work.round, reasons)[0]}"
            )
        steps, examples, up, spent = (
            sum(entry[what] for entry in billed) for what in ("steps", "examples", "bytes", "seconds")
        )
        cost = Cost(int(begins), steps, examples, payload * len(work.clients), up, 0, spent)
        pool = Pool(pools, layout, weights, losses) if pools else None
        return Replies((good[client] for client in sorted(good)), pool, work.scale), cost, dict(sorted(reasons.items()))

    def _asked(self, work: Work, vectors: Mapping[str, Params], layout: Layout) -> Asked:
        """What is known of the clients' work before they answer."""
        model = vectors["model"].flat
        return Asked(
            work.routine,
            self.task.local.with_options(work.options),
            float(work.options.get("effort", 1.0)),
            vectors=len(vectors) - 1,
            size=len(model),
            layout=layout,
            dtype=model.numpy().dtype,
            holds=self._most(work.split),
        )

    def _problems(
        self,
        asked: Sequence[int],
        arrays: Mapping[str, NDArray],
        report: Mapping[str, Mapping[str, Any]],
        wanted: Work,
        known: Asked,
    ) -> dict[int, str]:
        """What is wrong with the answer of each client that a message asked; empty where nothing is.

        Who is in one sum with a client whose entry is wrong must be asked again too: that client's share of the sum
        cannot be taken out of it.
        """
        found = {}
        for client in asked:
            entry, vector = report.get(str(client)), arrays.get(str(client))
            if entry is None:
                found[client] = "its node's answer does not name it"
            elif "error" in entry:
                found[client] = said(entry["error"])
            elif vector is None and not entry.get("pooled"):
                found[client] = "" if entry.get("num_examples") == 0 else "sent no vector"
            else:
                wrong = "" if vector is None else misfit(vector, known.layout, known.dtype)
                found[client] = wrong or miscount(client, entry, vector, known)
        summed = {name for name, entry in report.items() if entry.get("pooled")}
        if not summed:
            return found
        pool, may = arrays.get(messages.POOL), {str(client) for client in set(asked).intersection(wanted.pooled)}
        guilty = next((client for client in asked if str(client) in summed and found[client]), None)
        if summed - may:
            spoiled = "is in a sum that was not asked for"
        elif pool is None:
            spoiled = "sent no vector"
        elif guilty is not None:
            spoiled = f"is in one sum with client {guilty}, which {found[guilty]}"
        else:
            spoiled = misfit(pool, known.layout, np.dtype(np.float64))
        return {c: problem or (spoiled if str(c) in summed else "") for c, problem in found.items()}

    def _attempts(self) -> Iterator[float]:
        """Seconds that each of a round's two attempts may take: half of the time, then what is left of it."""
        end = time.monotonic() + self.timeout
        yield self.timeout / 2
        yield max(0.0, end - time.monotonic())

    def _ask(
        self,
        content: RecordDict,
        work: Work,
        groups: Sequence[tuple[int, ...]],
        tried: dict[tuple[int, ...], int],
        seconds: float,
    ) -> Iterable[tuple[tuple[int, ...], dict[str, NDArray], dict[str, dict]]]:
        """Send each node its share of ``groups``; yields ``(clients asked, arrays, reports)`` of each answer.

        ``tried``: which node had a group before. Where one did, every group gets a message of its own, because one
        client that hangs, or takes its worker with it, may have been all that was wrong with a share.
        """
        plan = self._schedule(groups, tried)
        shares = [(node, part) for node, mine in plan.items() for part in ([[g] for g in mine] if tried else [mine])]
        tried.update({group: node for node, mine in shares for group in mine})
        sent, pool = [], frozenset(work.pooled)
        for node, mine in shares:
            clients = tuple(client for group in mine for client in group)
            stacks = tuple(mine) if any(len(group) > 1 for group in mine) else ()
            pooled = tuple(sorted(pool.intersection(clients)))
            share = messages.repack(content, replace(work, clients=clients, groups=stacks, pooled=pooled))
            sent.append((Message(share, node, messages.TRAIN), clients))
        for clients, arrays, report, problem in self._answers(sent, seconds):
            yield clients, arrays, {str(client): {"error": problem} for client in clients} if problem else report

    def _answers(
        self, sent: Sequence[tuple[Message, tuple[int, ...]]], seconds: float
    ) -> Iterable[tuple[tuple[int, ...], dict[str, NDArray], dict[str, dict], str]]:
        """Send messages; yields ``(what was asked, arrays, reports, what is wrong)`` of each that was answered."""
        replies = list(self.grid.send_and_receive([message for message, _ in sent], timeout=seconds))
        asked = {message.metadata.message_id: what for message, what in sent}  # ids are given when a message is sent
        for reply in replies:
            if reply.metadata.reply_to_message_id not in asked:
                continue  # to a message that was given up: it must not enter another round
            what = asked.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                yield what, {}, {}, said(reply.error.reason)
                continue
            try:
                arrays, report = messages.unpack_reply(reply.content)
            except ValueError as error:
                yield what, {}, {}, f"sent what cannot be read ({said(error)})"
                continue
            yield what, arrays, report, ""

    def _groups(self, work: Work) -> list[tuple[int, ...]]:
        """The clients asked, cut into groups that are trained together, largest clients first.

        The rule looks at the clients alone, never at nodes, so that numbers do not depend on nodes: an even number of
        nearly equal groups of at most `GROUP` clients of similar size (of one where clients are trained one by one).
        """
        ranked = sorted(work.clients, key=lambda client: (-self.federation.num_train[client], client))
        everywhere = all(len(hosted) == len(self.federation.clients) for hosted in self.federation.hosts.values())
        device = self.federation.device
        grouped = self.task.engine(device) != "sequential" and work.routine == TRAIN_ROUTINE
        if not (grouped and everywhere):
            return [(client,) for client in ranked]
        number = min(len(ranked), 2 * -(-len(ranked) // (2 * GROUP[device])))
        return [tuple(part.tolist()) for part in np.array_split(ranked, number) if len(part)] if number else []

    def _schedule(
        self, groups: Sequence[tuple[int, ...]], tried: Mapping[tuple[int, ...], int]
    ) -> dict[int, list[tuple[int, ...]]]:
        """Longest group first, to the least loaded node that hosts it; not the same one twice, if possible."""
        plan: dict[int, list[tuple[int, ...]]] = {}
        load = dict.fromkeys(self.federation.hosts, 0)
        work = {group: sum(self.federation.num_train[client] for client in group) for group in groups}
        for group in sorted(groups, key=lambda group: (-work[group], group)):
            hosting = [node for node, hosted in self.federation.hosts.items() if hosted.issuperset(group)]
            fresh = [node for node in hosting if node != tried.get(group)] or hosting
            node = min(fresh, key=lambda n: (load[n], n))
            load[node] += work[group]
            plan.setdefault(node, []).append(group)
        return plan

    def _evaluate_parts(
        self, models: Sequence[Params], parts: Sequence[tuple[int, str, int, int, int]]
    ) -> list[Answers]:
        work = Work(self.task.to_json(), self.seeds, removed=self.removed, request=self.request)
        content = messages.pack(work, {str(number): model for number, model in enumerate(models)})
        answers: dict[int, Answers] = {}
        tried: dict[int, int] = {}
        problem = ""
        for seconds in self._attempts():
            shares: dict[int, list[int]] = {}
            load = dict.fromkeys(self.federation.hosts, 0)
            for number, (client, _, start, stop, _) in enumerate(parts):
                if number in answers:
                    continue
                hosting = [n for n, hosted in self.federation.hosts.items() if client == TEST or client in hosted]
                fresh = [node for node in hosting if node != tried.get(number)] or hosting
                node = min(fresh, key=lambda n: (load[n], n))
                load[node] += stop - start
                shares.setdefault(node, []).append(number)
                tried[number] = node
            sent = [
                (
                    Message(
                        messages.repack(content, replace(work, parts=tuple(parts[i] for i in share))),
                        node,
                        messages.EVALUATE,
                    ),
                    tuple(share),
                )
                for node, share in shares.items()
            ]
            problem = f"a node did not evaluate its models within {self.timeout:g} s"
            for share, arrays, report, wrong in self._answers(sent, seconds):
                wrong = wrong or _misanswer([parts[i] for i in share], arrays, report, self._classes)
                if wrong:
                    problem = f"a node could not evaluate a model: {wrong}"
                    continue
                sizes = [report[str(place)]["examples"] for place in range(len(share))]
                pieces = [
                    np.split(np.array(arrays[name]), np.cumsum(sizes)[:-1])
                    for name in ("logits", "labels", "rows", "included")
                ]
                for place, (number, logits, labels, rows, included) in enumerate(zip(share, *pieces, strict=True)):
                    owner = np.full(sizes[place], parts[number][0])
                    features = arrays.get(f"{place}/features")
                    kept = None if features is None else np.array(features)
                    answers[number] = Answers(logits, labels, owner, rows, included, kept)
            if len(answers) == len(parts):
                return [answers[number] for number in range(len(parts))]
        raise AuditFailed(
            f"{problem}; the audit of a model failed, not the method that made it: the same command goes on from here"
        )

    # ------------------------------------------------------------------ the cohort as a Flower Grid, one node a client

    def set_run(self, run: Any) -> None:
        """As in `Grid.set_run`."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """As in `Grid.run`."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As in `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The clients asked in the next round: the "nodes" that a learner may choose among."""
        return list(self.sample(self.next_round))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Not offered: a learner's round is one `send_and_receive`.

        Raises:
            TypeError: always.
        """
        raise TypeError("a Cohort carries whole rounds; use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Not offered, see `push_messages`.

        Raises:
            TypeError: always.
        """
        raise TypeError("a Cohort carries whole rounds; use send_and_receive")

    def send_and_receive(self, messages_: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """A learner's messages (one a client) as one round; replies in client-id order, in the learner's form."""
        by_client = {message.metadata.dst_node_id: message for message in messages_}
        if not by_client:
            return []
        replies = self.learner_round(by_client.values())
        model = messages.learner_model(by_client.values(), self.layout)
        weights = replies.weights()
        if self.separate is None or not weights:
            return messages.learner_replies(by_client, model, replies.by_client(), weights)
        first = next(iter(weights))
        mean = {first: replies.mean(torch.float64)}
        return messages.learner_replies(by_client, model, mean, {first: sum(weights.values())})

    def learner_round(self, messages_: Collection[Message]) -> Replies:
        """A learner's messages as one round, and the answers as a strategy sees them."""
        model = messages.learner_model(messages_, self.layout)
        options: dict[str, Any] = messages.learner_options(next(iter(messages_)).content)
        clients = [message.metadata.dst_node_id for message in messages_]
        return self._round(
            model, clients, self.separate, routines.train, "retain", self.next_round, None, None, options
        )


def _notes(round: int, left_out: Mapping[int, str]) -> list[str]:
    """A sentence for each client that was left out of a round."""
    return [f"round {round}: client {client} left out ({reason})" for client, reason in sorted(left_out.items())]


def _size(vector: Params) -> int:
    """Bytes of a vector."""
    return vector.flat.numel() * vector.flat.element_size()


def asked_of(fraction: float, clients: int) -> int:
    """How many of the clients are asked in a round: the nearest integer, where a half goes up.

    Raises:
        ValueError: if that is nobody.
    """
    number = int(fraction * clients + 0.5)
    if not number:
        raise ValueError(
            f"learning.fraction={fraction:g} of {clients} clients is not one client a round; "
            f"use at least {1 / clients:.2g}"
        )
    return number


def _misanswer(
    parts: Sequence[tuple[int, str, int, int, int]],
    arrays: Mapping[str, NDArray],
    report: Mapping[str, Any],
    classes: int,
) -> str:
    """What is wrong with a node's answer to an evaluation of ``parts``; empty if nothing is.

    Logits may be anything, because a model may be ruined; what they belong to may not.
    """
    sizes = [report.get(str(place), {}).get("examples") for place in range(len(parts))]
    for (_, split, start, stop, _), size in zip(parts, sizes, strict=True):
        if type(size) is not int or not 0 <= size <= stop - start:
            return f"says that {split} has {said(repr(size))} examples"
    total = sum(sizes)
    for name in ("logits", "labels", "rows", "included"):
        shape, dtype = ((total, classes), "float32") if name == "logits" else ((total,), "int64")
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            return f"sent {found} as {name}, expected {dtype} {shape}"
    if total and not 0 <= arrays["labels"].min() <= arrays["labels"].max() < classes:
        return f"sent labels that are no classes below {classes}"
    for place, ((_, split, *_), size) in enumerate(zip(parts, sizes, strict=True)):
        features = arrays.get(f"{place}/features")
        asked = audit_sets.find(split)
        if (features is not None) != bool(asked.features):
            return f"sent {'no' if features is None else 'unwanted'} features of {split}"
        if features is not None and (features.dtype != asked.dtype or features.shape[:1] != (size,)):
            return f"sent features of {features.dtype, features.shape} for {size} examples of {split}"
    return ""
