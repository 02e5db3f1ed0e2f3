"""What is said of a name that does not exist."""

import pytest

from fedforget.names import MOST, closest, nearest


@pytest.mark.parametrize(
    ("name", "valid", "end"),
    [
        ("finetun", ["scrub", "finetune"], "; did you mean 'finetune'?"),
        ("CNN", ["mlp", "cnn"], "; did you mean 'cnn'?"),  # capitals are no difference
        ("FashionMnist", ["MNIST", "FashionMNIST"], "; did you mean 'FashionMNIST'?"),
        ("x", ["train", "holdout"], "; choose one of train, holdout"),  # in the order of whoever lists them
        ("x", [], "; there is none"),
    ],
)
def test_the_nearest_name_is_offered_or_else_all_of_them(name, valid, end):
    assert nearest(name, valid) == end


def test_a_long_list_is_cut():
    end = nearest("x", (f"name{number}" for number in range(MOST + 35)))
    assert end.endswith(f"name{MOST - 1}, ... ({MOST + 35} in all)")


def test_no_name_is_close_to_everything():
    assert closest("resnet18", ["vit"]) == "" and closest("", ["vit"]) == ""
