from __future__ import annotations
import json
from dataclasses import dataclass, field, asdict
from functools import lru_cache
import numpy as np, torch
from sklearn.datasets import load_digits
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds

@dataclass(frozen=True)
class DataConfig:
    task: object = None
    partition: object = None
    corruption: object = None
    seed: int = 0
    clients = 10
    def to_json(self): return json.dumps({"clients": self.clients, "seed": self.seed})
    @classmethod
    def from_json(cls, t):
        f = json.loads(t); return cls(seed=f["seed"])

class FederatedData:
    def __init__(self, c):
        x, y = load_digits(return_X_y=True)
        x = torch.tensor(x/16, dtype=torch.float32).view(-1,1,8,8); y = torch.tensor(y)
        self.inputs, self.labels, self.test_inputs, self.test_labels = x[:1437], y[:1437], x[1437:], y[1437:]
        self.num_classes, self.input_shape, self.num_clients = 10, (1,8,8), c.clients
        self.seeds = Seeds(c.seed).child("data")
        perm = self.seeds.numpy("p").permutation(1437)
        parts = np.array_split(perm, c.clients)
        self.tr = [torch.tensor(np.sort(p[len(p)//5:])) for p in parts]
        self.ho = [torch.tensor(np.sort(p[:len(p)//5])) for p in parts]
        self.record = {}; self.fingerprint = "x"
    def num_train(self, c): return len(self.tr[c])
    def class_counts(self, c): return torch.bincount(self.labels[self.tr[c]], minlength=10).tolist()
    def split(self, client, name, trajectory, removed=(), request=None):
        if name == "holdout": return self.ho[client]
        def keep(reqs):
            m = torch.ones(len(self.tr[client]), dtype=torch.bool)
            for r in reqs:
                if r.scope == "client" and client in r.targets: m[:] = False
                if r.scope == "class": m &= ~torch.isin(self.labels[self.tr[client]], torch.tensor(r.targets))
                if r.scope == "sample": m[list(r.positions(client))] = False
            return m
        k = keep(removed)
        if name == "train": return self.tr[client][k]
        k2 = keep((*removed, request)) if request else k
        return self.tr[client][k2] if name == "retain" else self.tr[client][k & ~k2]
@lru_cache(2)
def load(c): return FederatedData(c)
