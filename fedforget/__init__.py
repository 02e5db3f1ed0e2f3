"""fedforget: federated unlearning, judged against a federated retrain."""

__version__ = "0.1.0"
