"""The network of several clients in one step, whatever the network: `torch.func.vmap` over stacked parameters.

A convolution of several clients becomes one grouped convolution. That is meant for a device which one client's step
does not fill; a CNN of McMahan's size fills a CPU, which is slower so (docs/performance.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedforget.client.stacks.base import Stack


class VmapStack(Stack):
    """A `Stack` of any network without buffers, differentiated by autograd as it stands.

    (Autograd through vmap takes three quarters of the time of vmap over `torch.func.grad`, measured with the CNN.)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)  # adaptive pooling, of model "linear", has no vmap rule, but is in `features`
        self._names = [name for name, _ in self.layers.named_parameters()]
        self._leaves: list[Tensor] = []
        self._logits = torch.zeros(0)

    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """As in `Stack.logits`."""

        def one(parameters: list[Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.layers, dict(zip(self._names, parameters, strict=True)), (x,))

        self._leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        # No network draws random numbers, see models.py; one that did would be refused here.
        self._logits = torch.func.vmap(one, randomness="error")(self._leaves, x)
        return self._logits

    def gradients(self, parameters: list[Tensor], slope: Tensor) -> list[Tensor]:
        """As in `Stack.gradients`."""
        return list(torch.autograd.grad(self._logits, self._leaves, slope.to(self._logits.dtype)))
