from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fedforget.models import ModelConfig, build, initial, names
from fedforget.routines import Client, LocalConfig, fisher
from fedforget.seeds import Seeds

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)


def shapes(name: str, width: float = 1.0, input_shape: tuple[int, int, int] = CIFAR) -> dict[str, torch.Size]:
    """Parameter shapes; the meta device allocates and draws nothing."""
    with torch.device("meta"):
        model = build(ModelConfig(name, width), input_shape, 10)
    return {key: parameter.shape for key, parameter in model.named_parameters()}


def count(name: str, width: float = 1.0, input_shape: tuple[int, int, int] = CIFAR) -> int:
    return sum(shape.numel() for shape in shapes(name, width, input_shape).values())


@pytest.mark.parametrize(
    ("name", "input_shape", "parameters"),
    [
        ("linear", MNIST, 784 * 10 + 10),
        ("mlp", MNIST, 199_210),  # McMahan et al. 2017, section 3
        ("cnn", MNIST, 1_663_370),  # McMahan et al. 2017, section 3
        ("cnn", DIGITS, (25 + 1) * 32 + (25 * 32 + 1) * 64 + (2 * 2 * 64 + 1) * 512 + 513 * 10),
        ("lenet5", DIGITS, 61_706),
        ("lenet5", MNIST, 61_706),
        ("lenet5", (1, 32, 32), 61_706),
        ("lenet5", (1, 36, 32), 61_706 + 16 * 5 * 120),  # one more row of the last 5-wide map
        ("resnet18", CIFAR, 11_689_512 - 990 * 513 - (49 - 9) * 3 * 64),  # torchvision's, 10 classes, 3x3 stem
        ("resnet34", CIFAR, 21_797_672 - 990 * 513 - (49 - 9) * 3 * 64),
        # patches, class token, positions; six layers of attention, MLP and two norms; last norm and head
        (
            "vit",
            CIFAR,
            49 * 256 + 256 + 65 * 256 + 6 * (4 * 257 * 256 + 257 * 512 + 513 * 256 + 4 * 256) + 2 * 256 + 257 * 10,
        ),
    ],
)
def test_parameter_counts(name, input_shape, parameters):
    assert count(name, 1.0, input_shape) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnet_is_torchvisions_but_for_its_stem(name):
    with torch.device("meta"):
        published = getattr(torchvision.models, name)(num_classes=10)
    expected = {key: parameter.shape for key, parameter in published.named_parameters()}
    assert shapes(name) == expected | {"conv1.weight": torch.Size([64, 3, 3, 3])}


def test_resnet_computes_what_torchvisions_does():
    ours = initial(ModelConfig("resnet18"), CIFAR, 10, seed=0)
    theirs = torchvision.models.resnet18(num_classes=10, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, *CIFAR, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images))


def test_vit_computes_what_torchvisions_does():
    ours = randomised(initial(ModelConfig("vit"), CIFAR, 10, seed=0))
    theirs = torchvision.models.VisionTransformer(32, 4, 6, 4, 256, 512, num_classes=10)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, *CIFAR, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images))


def randomised(model: nn.Module) -> nn.Module:
    """Noise on every parameter: torchvision's ViT starts with a head of zeros, which would hide all before it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@pytest.mark.parametrize("input_shape", [DIGITS, MNIST, CIFAR])
@pytest.mark.parametrize("name", names())
def test_every_model_takes_every_image_size_and_depends_on_all_its_parameters(name, input_shape):
    model = randomised(initial(ModelConfig(name, 0.25), input_shape, 7, seed=0))
    logits = model(torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", names())
def test_a_model_is_its_parameters(name):
    model = build(ModelConfig(name, 0.25), DIGITS, 10)
    assert list(model.buffers()) == []
    for module in model.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert not isinstance(module, nn.Dropout) or module.p == 0
        assert not getattr(module, "inplace", False)
    images = torch.randn(2, *DIGITS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.train()(images), model.train()(images))
    torch.testing.assert_close(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("name", names())
def test_vmap_over_models_equals_a_loop(name):
    models = [randomised(initial(ModelConfig(name, 0.125), DIGITS, 10, seed)) for seed in (0, 1)]
    images = torch.randn(2, 3, *DIGITS, generator=torch.Generator().manual_seed(0))

    def loss(parameters, batch):
        return functional_call(models[0], parameters, (batch,)).square().sum()

    stacked = {key: value.detach() for key, value in stack_module_state(models)[0].items()}
    gradients = vmap(grad(loss))(stacked, images)
    for index, model in enumerate(models):
        model(images[index]).square().sum().backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key][index], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", names())
def test_every_model_has_a_fisher_diagonal(name):
    # What fedaf, sga_ewc, saps and pbu ask for: the mean of the examples' squared gradients, here one by one.
    model = randomised(initial(ModelConfig(name, 0.125), DIGITS, 10, seed=0))
    images, labels = torch.randn(3, *DIGITS, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 9])
    found = fisher(Client(0, 1, model, images, labels, torch.arange(3), 3, LocalConfig(), Seeds(0)))
    squares = torch.zeros(found.layout.size)
    for image, label in zip(images, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        squares += torch.cat([gradient.flatten() for gradient in gradients]).square()
    torch.testing.assert_close(found.flat, squares / 3, rtol=1e-3, atol=1e-5 * float(squares.max()))
    assert found.norm() > 0


@pytest.mark.parametrize("name", names())
def test_second_derivative_exists(name):
    model = randomised(initial(ModelConfig(name, 0.125), DIGITS, 10, seed=0))
    images = torch.randn(2, *DIGITS, generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(model(images).logsumexp(1).sum(), parameters, create_graph=True)
    product = torch.autograd.grad(sum(part.square().sum() for part in gradient), parameters)
    assert all(part.isfinite().all() for part in product)


@pytest.mark.parametrize(
    ("name", "key", "full"),
    [
        ("mlp", "1.weight", 200),
        ("cnn", "3.weight", 64),
        ("lenet5", "3.weight", 16),
        ("resnet18", "layer4.1.conv2.weight", 512),
        ("resnet34", "layer4.2.conv2.weight", 512),
        ("vit", "conv_proj.weight", 256),
    ],
)
def test_width_scales_hidden_channels(name, key, full):
    assert shapes(name)[key][0] == full
    assert shapes(name, 0.5)[key][0] == full // 2
    assert shapes(name, 2.0)[key][0] == full * 2
    counts = [count(name, width) for width in (1e-9, 0.05, 0.3, 0.7, 1.0, 1.6)]
    assert counts == sorted(set(counts))


def test_width_pools_the_image_before_softmax_regression():
    # 28 * 0.5 = 14 and 14 * 14 * 10 + 10 = 1970; 2x2 blocks of pixels are averaged. Width 1 is the plain network.
    assert count("linear", 0.5, MNIST) == 1970
    pooled, plain = (build(ModelConfig("linear", width), MNIST, 10) for width in (0.5, 1.0))
    assert [type(module) for module in plain] == [nn.Flatten, nn.Linear]
    images = torch.rand(3, *MNIST)
    blocks = images.reshape(3, 14, 2, 14, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(pooled(images), pooled[-1](blocks))
    assert count("linear", 0.01, DIGITS) == 20  # 8 * 0.01 is less than a pixel; one is left
    with pytest.raises(ValueError, match="model 'linear' has the image's pixels .* width 2.0 must be at most 1"):
        build(ModelConfig("linear", 2.0), DIGITS, 10)


@pytest.mark.parametrize("name", names())
def test_initial_weights_depend_on_the_seed_alone(name):
    config = ModelConfig(name, 0.25)
    before = torch.random.get_rng_state()
    first = initial(config, DIGITS, 10, seed=2**63 - 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    again = initial(config, DIGITS, 10, seed=2**63 - 1)
    other = initial(config, DIGITS, 10, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_initial_weights_survive_concurrent_builds():
    config = ModelConfig("cnn", 0.25)

    def weights(seed: int) -> torch.Tensor:
        build(config, DIGITS, 10)
        return nn.utils.parameters_to_vector(initial(config, DIGITS, 10, seed).parameters()).detach()

    alone = [weights(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(weights, range(8)))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_small_models_do_not_load_torchvision():
    code = (
        "import sys; from fedforget.models import ModelConfig, build; build(ModelConfig('cnn'), (1, 8, 8), 10);"
        "sys.exit('torchvision' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("resnet19", 1.0, "'resnet19' is unknown; did you mean 'resnet18'"),
        ("CNN", 1.0, "'CNN' is unknown; did you mean 'cnn'"),
        ("mlp", 0.0, "width 0.0 must be a positive finite number"),
        ("mlp", -1.0, "width -1.0"),
        ("mlp", float("nan"), "width nan"),
        ("mlp", float("inf"), "width inf"),
    ],
)
def test_config_rejects(name, width, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(name, width)


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "message"),
    [
        ("cnn", (1, 8, 3), 10, "at least 4x4 pixels, not 8x3"),
        ("vit", (1, 28, 32), 10, "square images whose side 4 divides, not 28x32"),
        ("vit", (3, 30, 30), 10, "not 30x30"),
        ("vit", (1, 1, 1), 10, "side 2 divides, not 1x1"),
        ("linear", (0, 8, 8), 10, r"input shape \(0, 8, 8\) must be positive"),
        ("linear", DIGITS, 1, "num_classes 1 must be at least 2"),
    ],
)
def test_build_rejects(name, input_shape, num_classes, message):
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(name), input_shape, num_classes)


@pytest.mark.parametrize("name", ["cnn", "lenet5"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_relu_behind_pooling_is_relu_before_it_to_the_bit(name: str, memory_format: torch.memory_format) -> None:
    """Over three steps, on images with flat parts, where pooling meets ties and ReLU zeros."""
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)).sub_(0.5).relu_()
    images = images.contiguous(memory_format=memory_format)
    ours = initial(ModelConfig(name, 0.5), MNIST, 10, 1).to(memory_format=memory_format)
    layers = list(copy.deepcopy(ours))
    for place, pair in enumerate(itertools.pairwise(layers)):
        if isinstance(pair[0], nn.MaxPool2d):
            layers[place], layers[place + 1] = nn.ReLU(), pair[0]
    usual = nn.Sequential(*layers)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 2
    for _ in range(3):
        for model in (ours, usual):
            loss = nn.functional.cross_entropy(model(images), torch.arange(8))
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.data -= 0.5 * gradient
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), usual.parameters(), strict=True))
