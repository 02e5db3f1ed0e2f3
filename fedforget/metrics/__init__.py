"""Metrics: pure functions of stored model outputs, one family a file."""

from __future__ import annotations

from fedforget.metrics.outputs import Outputs, accuracy, loss, margin

METRICS = {"accuracy": accuracy, "loss": loss, "margin": margin}

__all__ = ["METRICS", "Outputs", "accuracy", "loss", "margin"]
