"""How far an unlearned model is from the retrained one, and what SGD says about it beforehand.

Source of both: Thudi, Deza, Chandrasekaran and Papernot, "Unrolling SGD: Understanding Factors Influencing Machine
Unlearning", EuroS&P 2022, arXiv 2109.13398, and its code (github.com/cleverhans-lab/unrolling-sgd). Its loss, which
keeps weights from moving far, is `fedforget.routines.sd_loss`.
"""

from __future__ import annotations

from fedforget.params import Params


def verification_error(unlearned: Params, retrained: Params) -> float:
    """``v = ||w_u - w_g||_2``. Lower is better; [0, inf); 0 if and only if the models are equal.

    Only pairs mean something: ``retrained`` has the same initial weights and random streams as the original. Read it
    beside the ``v`` of the original itself, for an unlearned model can be farther away than doing nothing.
    """
    return (unlearned.double() - retrained.double()).norm()


def unlearning_error(
    initial: Params, final: Params, steps: int, lr: float, sigma: float, square_root: bool = False
) -> float:
    """The proxy ``e = eta^2 (||w_t - w_0|| / t) sigma (t^2 - t) / 2`` of the verification error. Lower is better.

    It needs no retrained model; [0, inf). The released code has ``t / 2`` for ``(t^2 - t) / (2 t)``, the same up to
    ``1 / t``.

    Args:
        initial: ``w_0``.
        final: ``w_t``.
        steps: ``t``, the number of SGD steps between them, at least 1.
        lr: ``eta``, their learning rate.
        sigma: the largest singular value of the loss's Hessian, averaged over training.
        square_root: use ``sqrt(sigma)``, as the released code does; the derivation has ``sigma``.

    Raises:
        ValueError: if ``steps`` is not positive or ``sigma`` is negative.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if sigma < 0:
        raise ValueError(f"sigma={sigma} must not be negative; it is a singular value")
    distance = (final.double() - initial.double()).norm()
    return lr**2 * distance / steps * (sigma**0.5 if square_root else sigma) * (steps**2 - steps) / 2
