from dataclasses import dataclass
@dataclass(frozen=True)
class TaskConfig:
    source: str = "digits"
    path: str = ""
    root: str = ""
    input_column: str = ""
    label_column: str = ""
    id_column: str = ""
    test_share: float = 0.2
    max_train: int = 0
    max_test: int = 0
