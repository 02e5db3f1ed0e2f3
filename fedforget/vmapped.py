"""The network of several clients in one step, whatever the network: `torch.func.vmap` over stacked parameters.

A convolution of several clients becomes one grouped convolution. That is meant for a device which one client's step
does not fill; on a CPU, which a CNN of McMahan's size does fill, it is slower (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedforget.stacked import halves


class VmapStack:
    """A `fedforget.stacked.Stack` of any network without buffers, differentiated by autograd as it stands.

    (Autograd through vmap takes three quarters of the time of vmap over `torch.func.grad`, measured with the CNN.)
    """

    def __init__(self, model: nn.Module) -> None:
        self.features, self.layers = halves(model)  # adaptive pooling, of model "linear", has no vmap rule
        self.names = [name for name, _ in self.layers.named_parameters()]

    def logits(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """As in `fedforget.stacked.Stack.logits`."""

        def one(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.layers, dict(zip(self.names, parameters, strict=True)), (x,))

        # No network draws random numbers, see models.py; one that did would be refused here.
        return torch.func.vmap(one, randomness="error")(list(parameters), x)
