"""What the cohort pools equals what one process computes on all the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedforget import data, routines
from fedforget.client import training
from fedforget.cohort import TRAIN_ROUTINE, TooFewClients
from fedforget.exchange import Replies
from fedforget.history import HistoryConfig, Recording
from fedforget.messages import from_learner, to_learner
from fedforget.params import Params, weighted_mean
from fedforget.request import UnlearningRequest
from fedforget.strategy import LearningConfig, find, make_learner
from fedforget.testing import REQUESTS, Toy


def pooled(toy, request, split):
    """Inputs (float64) and labels of a split of all clients together."""
    federated = data.load(toy.task.data)
    rows = [federated.split(client, split, toy.seeds, (), request) for client in toy.federation.clients]
    index = torch.cat(rows)
    return federated.inputs[index].double(), federated.labels[index]


def linear_loss(inputs, labels):
    """The toy's mean cross-entropy as a function of its flat vector (10 x 64 weights, then 10 biases)."""

    def loss(flat):
        weight, bias = flat[:640].view(10, 64), flat[640:]
        return torch.nn.functional.cross_entropy(inputs.flatten(1) @ weight.T + bias, labels)

    return loss


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_gradient_and_hessian_products_equal_the_pooled_ones(tmp_path, scope, nodes):
    toy, request = Toy(tmp_path, nodes), REQUESTS[scope]
    cohort, w = toy.cohort(request), toy.start.double()
    v = Params(torch.sin(torch.arange(650.0, dtype=torch.float64)), w.layout)
    loss = linear_loss(*pooled(toy, request, "retain"))
    gradient = torch.func.grad(loss)(w.flat)
    product = torch.autograd.functional.hvp(loss, w.flat, v.flat)[1]
    torch.testing.assert_close(cohort.gradient(w).flat, gradient, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(cohort.hvp(w, v).flat, product, rtol=1e-6, atol=1e-12)
    assert cohort.cost.rounds == 2


def test_the_gradient_of_the_forgotten_data_comes_from_its_owners_only(tmp_path):
    toy, request = Toy(tmp_path), REQUESTS["sample"]
    cohort, w = toy.cohort(request), toy.start.double()
    expected = torch.func.grad(linear_loss(*pooled(toy, request, "forget")))(w.flat)
    torch.testing.assert_close(cohort.gradient(w, split="forget").flat, expected, rtol=1e-6, atol=1e-12)
    assert cohort.contacted == {2}


def test_the_fisher_diagonal_is_the_mean_squared_gradient(tmp_path):
    toy, request = Toy(tmp_path), REQUESTS["client"]
    w = toy.start.double()
    inputs, labels = pooled(toy, request, "retain")
    squares = [
        torch.func.grad(linear_loss(inputs[i : i + 1], labels[i : i + 1]))(w.flat) ** 2 for i in range(len(labels))
    ]
    expected = torch.stack(squares).mean(0)
    torch.testing.assert_close(toy.cohort(request).fisher(w).flat, expected, rtol=1e-9, atol=1e-15)


def test_sampling_is_paired_and_loses_only_the_forgotten(tmp_path):
    toy = Toy(tmp_path)
    request = UnlearningRequest("client", (2,))
    for round in range(1, 30):
        whole, rest = toy.cohort().sample(round), toy.cohort(request).sample(round)
        assert len(whole) == 4 and set(rest) == set(whole) - {2}  # 0.7 of six clients, rounded


def test_an_emptied_cohort_is_replaced(tmp_path):
    toy = Toy(tmp_path)
    everyone_but_one = UnlearningRequest("client", (0, 1, 2, 3, 4))
    cohort = toy.cohort(everyone_but_one)
    cohort.fraction = 0.1
    assert {cohort.sample(round) for round in range(1, 20)} == {(5,)}


SAME = [
    (UnlearningRequest("sample", ((2, 0), (2, 1))), UnlearningRequest("sample", ((2, 1), (2, 0)))),
    (UnlearningRequest("class", (3, 4)), UnlearningRequest("class", (4,))),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_what_is_forgotten_already_has_no_targets(tmp_path, first, second):
    cohort = Toy(tmp_path).cohort(second)
    cohort.removed = (first,)
    assert not cohort.targets


def test_what_two_requests_name_is_counted_once(tmp_path):
    """Client 2 forgets 60 % of its examples twice, half of which are the same: it still has data, so it stays."""
    toy = Toy(tmp_path)
    size = toy.federation.num_train[2]
    first, second = range(round(0.6 * size)), range(round(0.3 * size), round(0.9 * size))
    cohort = toy.cohort(UnlearningRequest("sample", tuple((2, position) for position in second)))
    cohort.removed = (UnlearningRequest("sample", tuple((2, position) for position in first)),)
    assert cohort.targets == (2,) and cohort.retained == (0, 1, 2, 3, 4, 5)
    classes = [UnlearningRequest("class", (0, 1, 2, 3, 4)), UnlearningRequest("class", (1, 2, 3, 4, 5))]
    cohort = toy.cohort(classes[1])
    cohort.removed = (classes[0],)
    whole = data.load(toy.task.data)
    for client, kept in toy.federation.kept(classes).items():
        assert kept == len(whole.split(client, "retain", toy.seeds, (classes[0],), classes[1]))
    assert cohort.retained == (0, 1, 2, 3, 4, 5)


def test_a_mean_weighs_by_examples_in_client_order(tmp_path):
    toy = Toy(tmp_path, 3)
    replies = toy.cohort().train(toy.start, [4, 0, 3])
    assert [reply.client for reply in replies] == [0, 3, 4]
    sizes = [toy.federation.num_train[client] for client in (0, 3, 4)]
    assert [reply.num_examples for reply in replies] == sizes
    expected = weighted_mean([reply.update for reply in replies], sizes)
    torch.testing.assert_close(replies.mean().flat, expected.flat, rtol=1e-7, atol=1e-12)


def test_a_client_that_does_not_exist_is_refused(tmp_path):
    toy = Toy(tmp_path)
    with pytest.raises(ValueError, match="client 17 does not exist; there are clients 0 to 5"):
        toy.cohort().train(toy.start, [17])


def test_the_ledger_counts_what_passes(tmp_path):
    toy = Toy(tmp_path)
    cohort = toy.cohort()
    cohort.train(toy.start, [0, 1], epochs=2)
    sizes = [toy.federation.num_train[client] for client in (0, 1)]
    assert cohort.cost.rounds == 1
    assert cohort.cost.client_examples == 2 * sum(sizes)
    assert cohort.cost.client_steps == sum(2 * -(-size // 32) for size in sizes)
    assert cohort.cost.bytes_down == cohort.cost.bytes_up == 2 * 4 * 650


@pytest.mark.parametrize(
    ("change", "rounds"),
    [
        ({}, 1),  # descent at those who stay and ascent at who leaves, from one model: they could be sent together
        ({"round": 8}, 2),  # another number
        ({"model": 2.0}, 2),  # another model may come from the first answers
        ({"vectors": 2.0}, 2),  # so may another vector
        ({"clients": (1, 2), "split": "retain"}, 2),  # client 1 is asked for the same again
    ],
)
def test_what_could_be_sent_together_is_one_round(tmp_path, change, rounds):
    toy = Toy(tmp_path)
    cohort = toy.cohort(REQUESTS["sample"])
    v = toy.start * 0.5
    cohort.train(toy.start, (0, 1), round=7, vectors={"v": v})
    second = {"clients": (2,), "split": "forget", "round": 7} | change
    model, v = toy.start * second.pop("model", 1.0), v * second.pop("vectors", 1.0)
    cohort.reduce(model, second.pop("clients"), vectors={"v": v}, **second)
    asked = 2 + len(change.get("clients", (2,)))
    assert cohort.cost.rounds == rounds and cohort.cost.bytes_down == asked * 2 * 4 * 650
    # Two answers and v; in the same round the other answer (a sum) beside them.
    assert cohort.held == (4 if rounds == 1 else 3) * 4 * 650


def test_what_the_server_holds_is_the_peak_over_rounds(tmp_path):
    toy = Toy(tmp_path)
    cohort, d = toy.cohort(REQUESTS["client"]), 4 * 650
    cohort.reduce(toy.start, (0, 1, 3))
    assert cohort.held == d  # one sum
    cohort.hold(toy.start, toy.start.double())  # kept aside from now on: d and 2 d
    cohort.train(toy.start, (0, 1, 3))
    assert cohort.held == 3 * d + 3 * d
    cohort.hold()
    cohort.train(toy.start, (0, 1, 3))
    assert cohort.held == 6 * d


def test_the_hessian_equals_the_pooled_one(tmp_path):
    toy, request = Toy(tmp_path, 2), REQUESTS["class"]
    w = toy.start.double()
    loss = linear_loss(*pooled(toy, request, "retain"))
    cohort = toy.cohort(request)
    gradient, hessian = cohort.hessian(w)
    torch.testing.assert_close(gradient.flat, torch.func.grad(loss)(w.flat), rtol=1e-6, atol=1e-12)
    rows = torch.func.jacrev(torch.func.grad(loss), chunk_size=64)(w.flat)
    torch.testing.assert_close(hessian, rows, rtol=1e-6, atol=1e-12)
    assert cohort.cost.rounds == 1 and cohort.cost.bytes_up == 6 * 8 * (650 + 650**2)
    assert cohort.cost.client_steps == 6 * 2 * 650


def test_a_reply_of_another_length_than_declared_is_left_out(tmp_path):
    toy = Toy(tmp_path)
    with pytest.raises(TooFewClients, match=r"sent a vector of shape \(423150,\), expected \(650,\)"):
        toy.cohort().train(toy.start, [0], routine="fedforget.routines:hessian")


@pytest.mark.parametrize("separate", [(), (3,), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("mode, waiting", [("stacked", 16), ("stacked", 2), ("sequential", 16), ("sequential", 2)])
def test_a_pool_holds_the_same_bits_as_updates_one_by_one(tmp_path, monkeypatch, nodes, separate, mode, waiting):
    monkeypatch.setattr(training, "WAITING", waiting)
    toy, other = Toy(tmp_path, nodes), Toy(tmp_path, 3)
    toy.task = other.task = replace(toy.task, mode=mode)
    one_by_one = other.cohort().train(toy.start, range(6), round=1)
    cohort = toy.cohort()
    cohort._round(toy.start, range(6), separate, TRAIN_ROUTINE, "retain", 1, None, None, {})
    replies = cohort.last_replies
    assert [reply.client for reply in replies] == list(separate)
    assert replies.weights() == one_by_one.weights() and replies.losses() == one_by_one.losses()
    assert replies.mean().equals(one_by_one.mean())
    assert replies.mean(torch.float64).equals(one_by_one.mean(torch.float64))
    assert cohort.cost.bytes_up == 6 * 4 * 650, "a client still sends its update, to whoever adds it up"


def test_reduce_is_the_mean_of_train_in_either_precision(tmp_path):
    toy = Toy(tmp_path, 2)
    for start in (toy.start, toy.start.double()):
        mean = toy.cohort().train(start, range(6), round=2).mean()
        assert toy.cohort().reduce(start, range(6), round=2).equals(mean)
        assert mean.flat.dtype == start.flat.dtype


def test_a_learner_that_averages_learns_the_same_from_a_pool(tmp_path):
    toy = Toy(tmp_path, 2)
    for learner in ("fedavg", "fedadam"):
        strategy = find("none")(learning=LearningConfig(learner=learner))
        pooled = list(strategy.learn(toy.cohort(), toy.start, 3))
        cohort = toy.cohort()
        cohort.separate = ()
        flowers = make_learner(strategy.learning)
        asked = flowers.configure_train(1, to_learner(toy.start), ConfigRecord(), cohort)
        aggregated, _ = flowers.aggregate_train(1, cohort.send_and_receive(asked))
        assert from_learner(aggregated, toy.start.layout).equals(pooled[0])
        recording = Recording(tmp_path / learner, toy.start.layout, HistoryConfig("all"), (), toy.seeds)
        recorded = list(strategy.learn(toy.cohort(), toy.start, 3, recording=recording))
        assert all(a.equals(b) for a, b in zip(pooled, recorded, strict=True))


def test_a_client_that_fails_is_not_in_the_pool(tmp_path, monkeypatch):
    """The fourth client raises twice, and then is missing; once, and it is asked again and nothing is missing."""
    toy = Toy(tmp_path, 2)
    name = "fedforget.routines:gradient"
    whole = toy.cohort().reduce(toy.start, range(6), routine=name)
    expected = toy.cohort().train(toy.start, [0, 1, 2, 4, 5], routine=name)
    routine, failures = routines.gradient, []

    def fails(client):
        if client.id == 3 and len(failures) < most:
            failures.append(client.id)
            raise RuntimeError("no battery")
        return routine(client)

    monkeypatch.setattr(routines, "gradient", fails)
    fails.__module__ = "fedforget.routines"
    for most in (2, 1):
        failures.clear()
        cohort = toy.cohort()
        mean = cohort.reduce(toy.start, range(6), routine=name)
        left_out = most == 2
        assert cohort.last_replies.weights().keys() == {0, 1, 2, 3, 4, 5} - ({3} if left_out else set())
        assert mean.equals(Replies(expected, scale=cohort.last_replies.scale).mean() if left_out else whole)
        assert bool(cohort.notes) == left_out


def test_an_update_too_large_to_add_exactly_comes_by_itself(tmp_path):
    """A learning rate of 1e6 throws weights beyond 128, where a sum of fixed digits would not hold them."""
    toy = Toy(tmp_path, 2)
    one_by_one = toy.cohort().train(toy.start, range(6), round=1, lr=1e6)
    assert max(float(reply.update.flat.abs().max()) for reply in one_by_one) > 128
    cohort = toy.cohort()
    assert cohort.reduce(toy.start, range(6), round=1, lr=1e6).equals(one_by_one.mean())
    assert len(cohort.last_replies) > 0


def test_several_models_are_asked_in_one_exchange_and_answer_as_if_asked_alone(tmp_path):
    toy = Toy(tmp_path, 3)
    cohort = toy.cohort(REQUESTS["client"])
    models = [toy.start, toy.start * 2.0, toy.start * -1.0]
    sets = [{"forget": 500, "near": 100, "plane": 1}, {"test": 300}, {"holdout": 50, "forget_layers": 20, "rest": 9}]
    alone = [cohort.evaluate(model, mine) for model, mine in zip(models, sets, strict=True)]
    sent = []
    deliver = toy.grid._deliver
    toy.grid._deliver = lambda batch: sent.extend(batch) or deliver(batch)
    together = cohort.evaluate_all(list(zip(models, sets, strict=True)))
    assert len(sent) <= 3, "more than one message a node"
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.keys() == theirs.keys()
        for name, answers in mine.items():
            for a, b in zip(answers, theirs[name], strict=True):
                assert (a is None and b is None) or np.array_equal(a, b), name
    assert cohort.evaluate_all([]) == []
