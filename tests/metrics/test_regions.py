"""Decision-region change: points where they should be, and changes with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedforget.metrics.regions import change, locality, mean_change, plane, sphere, typical_distance
from fedforget.seeds import Seeds


def step(threshold: float):
    """Class 1 where the first coordinate exceeds ``threshold``."""

    def model(inputs: Tensor) -> Tensor:
        first = inputs.flatten(1)[:, 0] - threshold
        return torch.stack([-first, first], 1)

    return model


def test_typical_distance_by_hand() -> None:
    # On a line at 0, 1, 3 and 7 the nearest others lie at 1, 1, 2 and 4: their median is 1.5.
    assert typical_distance(torch.tensor([0.0, 1, 3, 7]).view(4, 1, 1)) == 1.5
    assert typical_distance(torch.zeros(2, 3)) == 0


def test_typical_distance_in_blocks() -> None:
    assert typical_distance(torch.arange(2500.0)[:, None]) == 1


def test_a_lone_example_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="at least 2 examples, not 1"):
        typical_distance(torch.zeros(1, 3))


def test_a_sphere_is_a_sphere() -> None:
    anchor = torch.arange(12.0).view(1, 3, 4)
    points = sphere(anchor, 2.5, 2000, Seeds(0).torch("sphere"))
    assert points.shape == (2000, 1, 3, 4)
    offsets = (points - anchor).flatten(1)
    assert torch.allclose(offsets.norm(dim=1), torch.tensor(2.5), rtol=1e-5)
    assert offsets.mean(0).norm() < 0.25  # no direction is preferred
    assert torch.equal(points, sphere(anchor, 2.5, 2000, Seeds(0).torch("sphere")))


def test_a_plane_by_hand() -> None:
    # Anchor 0, (2, 0, 0) and (1, 3, 0): the bounding rectangle is [0, 2] x [0, 3], with no margin its 3 x 3 grid is:
    points = plane(torch.zeros(3), torch.tensor([2.0, 0, 0]), torch.tensor([1.0, 3, 0]), 3, margin=0)
    assert points.tolist() == [[x, y, 0] for x in (0, 1, 2) for y in (0, 1.5, 3)]
    # A margin of one half adds half a length at each end: [-1, 3] x [-1.5, 4.5].
    wide = plane(torch.zeros(3), torch.tensor([2.0, 0, 0]), torch.tensor([1.0, 3, 0]), 2, margin=0.5)
    assert wide.tolist() == [[-1, -1.5, 0], [-1, 4.5, 0], [3, -1.5, 0], [3, 4.5, 0]]


def test_a_plane_holds_its_three_images_and_nothing_off_it() -> None:
    a, b, c = torch.randn(3, 1, 4, 4, generator=Seeds(1).torch("plane"))
    points = plane(a, b, c, 5).flatten(1) - a.flatten()
    assert points.shape == (25, 16)
    spanned = torch.stack([(b - a).flatten(), (c - a).flatten()]).T
    residual = points.T - spanned @ torch.linalg.lstsq(spanned, points.T).solution
    assert residual.abs().max() < 1e-5


@pytest.mark.parametrize("second", [(4.0, 4.0), (0.0, 0.0), (-1.0, -1.0)])
def test_three_images_on_a_line_are_refused(second: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="on one line"):
        plane(torch.zeros(2), torch.ones(2), torch.tensor(second), 3)
    with pytest.raises(ValueError, match="on one line"):
        plane(torch.zeros(2), torch.zeros(2), torch.tensor(second), 3)


def test_change_by_hand() -> None:
    # The threshold moves from 1.5 to 3.5: of 0, ..., 9, the points 2 and 3 change class.
    points = torch.arange(10.0)[:, None]
    assert change(step(1.5), step(3.5), points) == pytest.approx(0.2)
    assert change(step(1.5), step(1.5), points) == 0
    assert change(step(1.5), lambda inputs: -step(1.5)(inputs), points) == 1
    assert change(step(-1), step(1250.5), torch.arange(2500.0)[:, None]) == pytest.approx(1251 / 2500)


def test_change_is_local() -> None:
    # The threshold moves from 0 to 0.5. On the unit circle around (0, 0) the band between covers two arcs of 30 of 360
    # degrees: 1/6. On the one around (9, 0) nothing changes.
    near, far = (
        mean_change(step(0.0), step(0.5), torch.tensor([[x, 0.0]] * 3), 1.0, 4000, Seeds(0).torch("change"))
        for x in (0.0, 9.0)
    )
    assert near == pytest.approx(1 / 6, abs=0.01) and far == 0
    assert locality(near, far) == 1


def test_locality() -> None:
    assert locality(0.3, 0.1) == pytest.approx(0.75)
    assert locality(0.2, 0.2) == 0.5
    assert math.isnan(locality(0.0, 0.0))
