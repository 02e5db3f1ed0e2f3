from dataclasses import dataclass
@dataclass(frozen=True)
class CorruptionConfig:
    kind: str = "none"
    clients: tuple[int, ...] = ()
    share: float = 1.0
    target_class: int = 0
    patch: int = 3
    classes: tuple[int, int] = (0, 1)
    canaries: int = 100
    canary_label: str = "random"
