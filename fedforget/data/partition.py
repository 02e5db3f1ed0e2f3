from dataclasses import dataclass
@dataclass(frozen=True)
class PartitionConfig:
    kind: str = "iid"
    clients: int = 10
    alpha: float = 0.3
    classes_per_client: int = 2
    shards_per_client: int = 2
    growth: str = "linear"
    min_examples: int = 10
    holdout: float = 0.2
