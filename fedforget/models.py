"""Image classifiers by name, every one with a width multiplier.

=========  ==========================================================================================================
linear     softmax regression; ``width``, at most 1, scales the image's sides by average pooling before it
mlp        "2NN" of McMahan et al. 2017: two hidden layers of 200
cnn        CNN of McMahan et al. 2017: 5x5 convolutions of 32 and 64 channels, each pooled 2x2, then 512 units
lenet5     LeNet-5 of LeCun et al. 1998 with ReLU, max pooling and full connections between the two convolutions
resnet18   He et al. 2016 on a CIFAR stem (3x3 convolution of stride 1, no pooling), GroupNorm for BatchNorm
resnet34   as resnet18, deeper
vit        ViT-Lite-6 of Hassani et al. 2021: 6 layers, 4 heads, 256 features, MLP ratio 2
=========  ==========================================================================================================

No model has dropout or buffers: its parameters are all there is to send, and its output depends on nothing else. All
work under ``torch.func`` (functional_call, grad, vmap). Images are float tensors (batch, channels, height, width),
outputs are logits (batch, num_classes).

ReLU stands behind max pooling: what it lets through of a maximum is the maximum of what it lets through, so values and
gradients are those of the usual order to the bit, and it sees a quarter of the entries (on a CPU a step of lenet5 takes
0.73 of the time, one of cnn 0.9).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedforget.schema.learning import ModelConfig

Shape = tuple[int, int, int]

# Trajectories build models in concurrent threads, but torch draws initial weights from one process-wide generator.
# Reentrant because `initial` calls `build`; `build` needs it too, or its draws would land inside another `initial`.
_GENERATOR_LOCK = threading.RLock()


def names() -> list[str]:
    """The names of all models."""
    return list(_BUILDERS)


def build(config: ModelConfig, input_shape: Shape, num_classes: int) -> nn.Module:
    """A model with weights drawn from torch's global generator; for weights that matter use `initial`.

    Args:
        config: which model.
        input_shape: (channels, height, width) of one image.
        num_classes: number of logits.

    Raises:
        ValueError: if the model cannot take images of this shape, or there are fewer than two classes.
    """
    if min(input_shape) < 1:
        raise ValueError(f"input shape {tuple(input_shape)} must be positive (channels, height, width)")
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes} must be at least 2")
    with _GENERATOR_LOCK:
        return _BUILDERS[config.name](input_shape, num_classes, config.width)


def initial(config: ModelConfig, input_shape: Shape, num_classes: int, seed: int) -> nn.Module:
    """As `build`, with weights that depend on ``seed`` alone; the state of the global generator is left as it was."""
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the accelerators, whose state is not forked here.
        torch.default_generator.manual_seed(seed)
        return build(config, input_shape, num_classes)


def _scaled(size: int, width: float, multiple: int = 1) -> int:
    """``size * width`` rounded to a multiple of ``multiple``, at least one."""
    return multiple * max(1, round(size * width / multiple))


def _linear(shape: Shape, num_classes: int, width: float) -> nn.Module:
    channels, height, breadth = shape
    if width > 1:
        raise ValueError(f"model 'linear' has the image's pixels as its inputs; width {width} must be at most 1")
    # Fewer inputs make a model whose whole Hessian fits: MNIST at width 0.5 has 14x14 inputs and d = 1970.
    sides = _scaled(height, width), _scaled(breadth, width)
    pooling = [] if sides == (height, breadth) else [nn.AdaptiveAvgPool2d(sides)]
    return nn.Sequential(*pooling, nn.Flatten(), nn.Linear(channels * math.prod(sides), num_classes))


def _mlp(shape: Shape, num_classes: int, width: float) -> nn.Module:
    hidden = _scaled(200, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def _cnn(shape: Shape, num_classes: int, width: float) -> nn.Module:
    channels, height, breadth = shape
    if min(height, breadth) < 4:
        raise ValueError(f"model 'cnn' halves the image twice and needs at least 4x4 pixels, not {height}x{breadth}")
    first, second, hidden = (_scaled(size, width) for size in (32, 64, 512))
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (breadth // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def _lenet5(shape: Shape, num_classes: int, width: float) -> nn.Module:
    channels, height, breadth = shape
    # LeNet-5 reads a field of 32x32 in whose centre LeCun et al. put their 28x28 digits, so smaller images are padded
    # with zeros to that field: by 2 pixels at 28x28, by none at 32x32, by 12 at 8x8. Larger ones keep their size.
    padding = max(0, math.ceil((32 - height) / 2)), max(0, math.ceil((32 - breadth) / 2))
    rows, columns = (((side + 2 * pad - 4) // 2 - 4) // 2 for side, pad in zip(shape[1:], padding, strict=True))
    first, second, third, fourth = (_scaled(size, width) for size in (6, 16, 120, 84))
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * rows * columns, third),
        nn.ReLU(),
        nn.Linear(third, fourth),
        nn.ReLU(),
        nn.Linear(fourth, num_classes),
    )


def _group_norm(channels: int) -> nn.Module:
    # Two groups, as Reddi et al. 2021 ("Adaptive Federated Optimization") use in federated ResNets. A fixed number of
    # groups keeps them large as width shrinks: with the usual 32 groups, small widths would leave one channel to a
    # group, and on 8x8 images, which end as 1x1 maps, a group of one value is normalised to a constant.
    return nn.GroupNorm(2, channels)


def _resnet(blocks: tuple[int, ...], shape: Shape, num_classes: int, width: float) -> nn.Module:
    """torchvision's blocks under torchvision's parameter names; assembled here because its ResNet fixes 64 channels."""
    from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3  # imported here: it is slow to load

    inputs = _scaled(64, width, multiple=2)
    model = nn.Sequential(
        OrderedDict[str, nn.Module](conv1=conv3x3(shape[0], inputs), bn1=_group_norm(inputs), relu=nn.ReLU())
    )
    for stage, count in enumerate(blocks):
        outputs = _scaled(64, width, multiple=2) * 2**stage
        shortcut = None
        if stage > 0:
            shortcut = nn.Sequential(conv1x1(inputs, outputs, stride=2), _group_norm(outputs))
        first = BasicBlock(inputs, outputs, 2 if stage > 0 else 1, shortcut, norm_layer=_group_norm)
        rest = [BasicBlock(outputs, outputs, norm_layer=_group_norm) for _ in range(count - 1)]
        model.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
        inputs = outputs
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(inputs, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.ReLU):
            module.inplace = False  # an activation that a hook or a transform holds must not change under it
    return model


def _resnet18(shape: Shape, num_classes: int, width: float) -> nn.Module:
    return _resnet((2, 2, 2, 2), shape, num_classes, width)


def _resnet34(shape: Shape, num_classes: int, width: float) -> nn.Module:
    return _resnet((3, 4, 6, 3), shape, num_classes, width)


class _SelfAttention(nn.MultiheadAttention):
    """Self-attention by plain matrix products: torch's fused kernels have no vmap rule and no second derivative."""

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Features (batch, tokens, features) to the same; key and value are taken to be the query."""
        projected = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        # (batch, tokens, 3 * features) -> three of (batch, heads, tokens, features per head)
        q, k, v = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()
        weights = (q @ k.mT / math.sqrt(self.head_dim)).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), None


def _vit(shape: Shape, num_classes: int, width: float) -> nn.Module:
    from torchvision.models import VisionTransformer  # imported here: it is slow to load

    channels, height, breadth = shape
    patch = 4 if height >= 16 else 2  # 7x7 patches of 28x28 and 8x8 of 32x32; 8x8 digits still give 4x4
    if height != breadth or height % patch:
        raise ValueError(f"model 'vit' needs square images whose side {patch} divides, not {height}x{breadth}")
    heads = 4
    hidden = _scaled(256, width, multiple=heads)
    model = VisionTransformer(height, patch, 6, heads, hidden, 2 * hidden, num_classes=num_classes)
    # torchvision's ViT takes three channels only; this is its own first layer and initialisation for any number.
    model.conv_proj = nn.Conv2d(channels, hidden, patch, stride=patch)
    nn.init.trunc_normal_(model.conv_proj.weight, std=1 / math.sqrt(channels * patch**2))
    nn.init.zeros_(model.conv_proj.bias)
    for block in model.encoder.layers:
        block.self_attention = _SelfAttention(hidden, heads)
    return model


_BUILDERS: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "linear": _linear,
    "mlp": _mlp,
    "cnn": _cnn,
    "lenet5": _lenet5,
    "resnet18": _resnet18,
    "resnet34": _resnet34,
    "vit": _vit,
}
