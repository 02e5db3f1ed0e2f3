"""Points of decision regions: where nodes put them, and what is asked there.

The hook sees what the model is given, so that every expected value follows from the points and the data alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedforget import data
from fedforget.client import answering
from fedforget.client.workbench import workbench
from fedforget.cohort import Answers, Cohort, describe
from fedforget.data import audit_sets
from fedforget.data.corruption import CorruptionConfig
from fedforget.metrics import regions
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy

POINTS, ANCHORS = 20, 20
PIXEL = 20  # one that varies


def asked(cohort: Cohort, model: Params, name: str, most: int = 2000) -> tuple[Answers, Tensor]:
    """The answers on one audit set of one owner, and the images that the model was given."""
    given: list[Tensor] = []
    network = workbench(cohort.task.to_json()).model
    hook = network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].clone()))
    answers = cohort.evaluate(model, {name: most})[name]
    hook.remove()
    return answers, torch.cat(given)


def threshold(layout, at: float) -> Params:
    """Class 1 where the pixel exceeds ``at``, else class 0."""
    weight, bias = torch.zeros(10, 64), torch.full((10,), -1e6)
    weight[0, PIXEL], weight[1, PIXEL] = -1, 1
    bias[0], bias[1] = at, -at
    return Params(torch.cat([weight.flatten(), bias]), layout)


@pytest.mark.parametrize("name", ["near", "far", "plane"])
def test_points_are_the_same_for_every_model_trajectory_and_number_of_nodes(tmp_path: Path, name: str) -> None:
    found, logits = [], []
    for nodes in (1, 2, 4):
        toy = Toy(tmp_path, nodes)
        cohort = toy.cohort(REQUESTS["client"])
        for seeds, model in ((toy.seeds, toy.start), (Seeds(6).child("trajectory", 1), threshold(cohort.layout, 0.0))):
            cohort.seeds = seeds
            answers, points = asked(cohort, model, name)
            found.append((torch.from_numpy(answers.rows), torch.from_numpy(answers.labels), points))
            logits.append(torch.from_numpy(answers.logits))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert torch.equal(logits[0], logits[2]) and torch.equal(logits[0], logits[4])  # the same model
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("name", "client"), [("near", 2), ("far", -1)])
def test_points_lie_on_spheres_around_the_examples_they_are_about(tmp_path: Path, name: str, client: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    toy = Toy(tmp_path)
    request, federated = REQUESTS["sample"], data.load(toy.task.data)
    answers, points = asked(toy.cohort(request), toy.start, name)
    rows = torch.from_numpy(answers.rows)
    assert len(points) == len(rows.unique()) == POINTS * ANCHORS and set(answers.clients) == {client}
    inputs, labels = federated.inputs, federated.labels
    if name == "far":
        inputs, labels = federated.test_inputs, federated.test_labels
    else:  # all 20 that the request names are anchors
        assert set((rows // POINTS).tolist()) == set(federated.split(2, "forget", toy.seeds, request=request).tolist())
    distances = (points - inputs[rows // POINTS]).flatten(1).norm(dim=1)
    # The digits have 360 test images: half the median distance from one to the nearest other.
    nearest, _ = NearestNeighbors(n_neighbors=1).fit(federated.test_inputs.flatten(1).double().numpy()).kneighbors()
    expected = 0.5 * torch.from_numpy(nearest).quantile(0.5)
    torch.testing.assert_close(distances, torch.full_like(distances, expected.item()), rtol=1e-5, atol=0)
    assert torch.equal(torch.from_numpy(answers.labels), labels[rows // POINTS])


def test_several_owners_share_the_spheres(tmp_path: Path) -> None:
    """400 points among 6 owners are 67 each, 7 of them of a fourth sphere; the plane is the first owner's."""
    cohort = Toy(tmp_path).cohort(REQUESTS["class"])
    answers = cohort.evaluate(Toy(tmp_path).start, {"near": 2000, "plane": 1})
    for client in range(6):
        rows = answers["near"].rows[answers["near"].clients == client]
        assert len(rows) == 67 and len(set(rows // POINTS)) == 4
    assert set(answers["near"].labels) == {3}
    assert answers["plane"].rows.tolist() == list(range(1600)) and set(answers["plane"].clients) == {0}


def test_change_near_is_the_share_of_points_between_two_thresholds(tmp_path: Path) -> None:
    """Of the points, those whose pixel lies between the thresholds change class, and no others."""
    cohort = Toy(tmp_path).cohort(REQUESTS["client"])
    low, high = (threshold(cohort.layout, at) for at in (-0.3, 0.4))
    (before, points), (after, _) = asked(cohort, low, "near"), asked(cohort, high, "near")
    between = (points.flatten(1)[:, PIXEL] > -0.3) & (points.flatten(1)[:, PIXEL] <= 0.4)
    changed = before.logits.argmax(1) != after.logits.argmax(1)
    assert 0 < changed.sum() < len(points) == 400
    assert changed.tolist() == between.tolist()


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_a_plane_passes_through_a_forgotten_example_and_two_others_of_its_owner(tmp_path: Path, scope: str) -> None:
    toy, request = Toy(tmp_path), REQUESTS[scope]
    cohort, federated = toy.cohort(request), data.load(toy.task.data)
    answers, points = asked(cohort, toy.start, "plane", most=1)  # a grid is never cut
    owner = cohort.targets[0]
    held = federated.split(owner, "train", toy.seeds)
    places = [row * 40 + column for column, row in regions.marks(40)]
    mine = [held[(federated.inputs[held] == points[place]).flatten(1).all(1)] for place in places]
    assert [len(rows) for rows in mine] == [1, 1, 1] and len(points) == 1600
    assert mine[0].item() in federated.split(owner, "forget", toy.seeds, request=request)
    assert answers.labels[places].tolist() == federated.labels[torch.cat(mine)].tolist()
    assert len(set(answers.labels.tolist())) == 3


def test_two_examples_have_spheres_and_no_plane(tmp_path: Path) -> None:
    """An earlier request left the owner two examples, which are forgotten now."""
    toy = Toy(tmp_path)
    cohort, size = toy.cohort(REQUESTS["client"]), toy.federation.num_train[2]
    cohort.removed = (UnlearningRequest("sample", tuple((2, position) for position in range(size - 2))),)
    answers = cohort.evaluate(toy.start, {"near": 2000, "plane": 2000})
    assert len(answers["near"].rows) == 2 * POINTS
    assert answers["plane"].logits.shape == (0, 10)


def test_examples_inside_every_layer(tmp_path: Path) -> None:
    """Softmax regression has one layer, whose outputs are the logits."""
    toy = Toy(tmp_path)
    cohort = toy.cohort(REQUESTS["client"])
    found = cohort.evaluate(toy.start, {"forget": 2000, "forget_layers": 2000, "holdout_layers": 3})
    inside = found["forget_layers"]
    number, layers, width = inside.features.shape
    assert (number, width) == (min(64, len(found["forget"].labels)), audit_sets.LAYER_WIDTH)
    assert inside.features.nbytes == 512 * number * layers  # the bound that the documentation states
    # The last layer's outputs are filled up with zeros; the examples are the first of the audit set.
    assert torch.equal(torch.tensor(inside.features[:, -1, :10]), torch.tensor(inside.logits).half())
    assert not inside.features[:, -1, 10:].any()
    assert (inside.rows == found["forget"].rows[:number]).all()
    assert (inside.logits == found["forget"].logits[:number]).all()
    assert len(found["holdout_layers"].labels) == 3


def test_a_wide_layer_is_averaged_over_neighbours() -> None:
    """One image of 32 x 32 of ones and a convolution that copies it to the first of two maps: 2048 entries, of which
    each of the 256 numbers kept is the mean of eight; half of them are 1."""
    convolution = torch.nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
    network = torch.nn.Sequential(convolution, torch.nn.Flatten(), torch.nn.Linear(2048, 3))
    with torch.no_grad():
        logits, features = answering._layers(network, [torch.ones(2, 1, 32, 32)])
    kept = torch.cat(features)
    assert kept.shape == (2, 2, 256) and kept.dtype == torch.half
    assert kept[:, 0].tolist() == [[1.0] * 128 + [0.0] * 128] * 2
    assert torch.equal(kept[:, 1, :3], logits[0].half()) and not any(m._forward_hooks for m in network.modules())


def test_noise_along_the_gradient_of_the_margin_at_the_clean_image(tmp_path: Path) -> None:
    """Softmax regression: the margin z_y - log sum of the others has the gradient w_y minus the mean of the other w_j,
    weighted by their softmax among themselves; also where a model is so sure that its loss is 0 in single precision.
    """
    toy = Toy(tmp_path)
    corruption = CorruptionConfig("noise", (2, 4), share=0.5, deviation=0.3)
    toy.task = replace(toy.task, data=replace(toy.task.data, corruption=corruption))
    toy.federation = describe(toy.grid, toy.task)
    federated = data.load(toy.task.data)
    request = REQUESTS["client"]
    for model in (toy.start, 1000 * toy.start):
        found = toy.cohort(request).evaluate(model, {"noise": 2000})["noise"]
        rows = federated.split(2, "noise", toy.seeds, (), request)
        assert sorted(found.rows.tolist()) == rows.tolist() and found.features.shape == (len(rows), 2)
        clean, noise = (images.flatten(1).double() for images in federated.noise(torch.from_numpy(found.rows)))
        weight, bias = (layer.double() for layer in model.layers().values())
        labels = torch.from_numpy(found.labels)
        logits = clean @ weight.T + bias
        # A logit near 0 is a sum of large terms, whose rounding it has.
        assert torch.allclose(torch.from_numpy(found.logits).double(), logits, atol=1e-6 * float(logits.abs().max()))
        others = logits.scatter(1, labels[:, None], -torch.inf).softmax(1)
        gradient = weight[labels] - others @ weight
        expected = torch.stack([(noise * gradient).sum(1), gradient.norm(dim=1)], 1)
        assert torch.allclose(
            torch.from_numpy(found.features).double(), expected, rtol=1e-3, atol=1e-4 * gradient.norm()
        )


def test_what_is_remembered_is_asked_of_one_trajectory_and_request(tmp_path: Path) -> None:
    """The same process is asked in turn by trajectories with other coins, and for other requests; twice each."""
    toy = Toy(tmp_path)
    config = replace(toy.task.data, corruption=CorruptionConfig("canary", clients=(2,), canaries=40))
    toy.task = replace(toy.task, data=config)
    toy.federation = describe(toy.grid, toy.task)
    federated = data.load(config)
    earlier = UnlearningRequest("sample", REQUESTS["sample"].targets[::2])
    for _ in range(2):
        for k in range(2):
            for name in ("client", "sample", "class"):
                for removed in ((), (earlier,)):
                    cohort = toy.cohort(REQUESTS[name])
                    cohort.seeds, cohort.removed = Seeds(5).child("trajectory", k), removed
                    answers = cohort.evaluate(toy.start, {"forget": 2000, "canary": 2000})
                    whose = cohort.seeds, removed, REQUESTS[name]
                    expected = [federated.split(client, "forget", *whose) for client in cohort.targets]
                    assert sorted(answers["forget"].rows) == sorted(torch.cat(expected).tolist())
                    heads = federated.split(2, "canary_in", *whose)
                    marked = answers["canary"].rows[answers["canary"].included == 1]
                    assert 2 not in cohort.targets or sorted(marked) == heads.tolist()
