"""Decision-region change: points where they should be."""

from __future__ import annotations

import pytest
import torch

from fedforget.metrics.regions import corners, grid, locality, marks, plane, sphere, typical_distance
from fedforget.seeds import Seeds


def test_typical_distance_by_hand() -> None:
    # On a line at 0, 1, 3 and 7 the nearest others lie at 1, 1, 2 and 4: their median is 1.5.
    assert typical_distance(torch.tensor([0.0, 1, 3, 7]).view(4, 1, 1)) == 1.5
    assert typical_distance(torch.zeros(2, 3)) == 0


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


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([5, 5, 2, 5, 2, 7], [0, 2, 5]),  # the first example of each class
        ([5, 5, 2, 2], [0, 2, 1]),  # two classes: then the next example there is
        ([5, 5, 5, 5], [0, 1, 2]),
    ],
)
def test_corners_are_of_different_classes_if_there_are_any(labels: list[int], expected: list[int]) -> None:
    assert corners(torch.tensor(labels)) == expected


def test_two_examples_span_no_plane() -> None:
    with pytest.raises(ValueError, match="needs 3 examples, not 2"):
        corners(torch.tensor([0, 1]))


def test_a_plane_by_hand() -> None:
    # A grid of 3 has no room beyond the images. With a = 0, b = (2, 0, 4) and c = (1, 3, 0), half the way to b is
    # (1, 0, 2) and half the way to c is (0.5, 1.5, 0); rows go to c, columns to b.
    assert marks(3) == [(0, 0), (2, 0), (0, 2)]
    points = plane(torch.tensor([[0.0, 0, 0], [2, 0, 4], [1, 3, 0]]), 3)
    assert points.tolist() == [
        *([0, 0, 0], [1, 0, 2], [2, 0, 4]),
        *([0.5, 1.5, 0], [1.5, 1.5, 2], [2.5, 1.5, 4]),
        *([1, 3, 0], [2, 3, 2], [3, 3, 4]),
    ]
    # In a grid of 8 one point lies beyond them on each side: the steps are -1/5, 0, ..., 1, 6/5.
    assert marks(8) == [(1, 1), (6, 1), (1, 6)]
    assert grid(8)[0].tolist() == pytest.approx([1.4, -0.2, -0.2])
    assert grid(8)[7].tolist() == pytest.approx([0, 1.2, -0.2], abs=1e-6)


def test_a_plane_holds_its_three_images_and_nothing_off_it() -> None:
    images = torch.randn(3, 1, 4, 4, generator=Seeds(1).torch("plane"))
    points = plane(images, 40)
    assert points.shape == (1600, 1, 4, 4)
    for image, (column, row) in zip(images, marks(40), strict=True):
        assert torch.equal(points[40 * row + column], image)
    offsets = (points - images[0]).flatten(1).double()
    spanned = (images[1:] - images[0]).flatten(1).double().T
    residual = offsets.T - spanned @ torch.linalg.lstsq(spanned, offsets.T).solution
    assert residual.abs().max() < 1e-5


def test_locality() -> None:
    assert locality(0.3, 0.1) == pytest.approx(0.75)
    assert locality(0.2, 0.0) == 1
    assert locality(0.2, 0.2) == locality(0.0, 0.0) == 0.5
