"""From requests as users write them to requests that name clients, positions and classes."""

from __future__ import annotations

from fedforget.cohort import Federation
from fedforget.config import RequestStep, RunConfig
from fedforget.data import load
from fedforget.data.origins import Origins
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds


def resolve(config: RunConfig, federation: Federation) -> tuple[UnlearningRequest, ...]:
    """The requests that a configuration means, now that the federation's data are known.

    Raises:
        ValueError: if a request names what is not there, or not trained on.
    """
    return tuple(_resolved(number, step, config, federation) for number, step in enumerate(config.request.steps))


def _resolved(number: int, step: RequestStep, config: RunConfig, federation: Federation) -> UnlearningRequest:
    if step.scope == "class":
        labels = [federation.facts.classes.index(label, "request.classes") for label in step.classes]
        return UnlearningRequest("class", tuple(labels), step.after_round)
    if step.rows:
        return UnlearningRequest("sample", _origins(config, "rows").places(step.rows), step.after_round)
    if step.records:
        origins = _origins(config, "records")
        rows = origins.origin.rows_of(step.records)
        return UnlearningRequest("sample", origins.places(rows), step.after_round)
    clients = _origins(config, "owners").clients(step.owners) if step.owners else step.clients
    missing = [client for client in clients if client not in federation.num_train]
    if missing:
        raise ValueError(
            f"request.clients={list(clients)}: client {missing[0]} does not exist; "
            f"there are clients 0 to {federation.clients[-1]}"
        )
    if step.scope == "client":
        return UnlearningRequest("client", clients, step.after_round)
    return _samples(number, step, clients[0], federation.num_train[clients[0]], Seeds(config.seed))


def _samples(number: int, step: RequestStep, client: int, size: int, seeds: Seeds) -> UnlearningRequest:
    """A request for some of a client's ``size`` training examples."""
    positions = list(step.samples)
    if not positions:
        order = seeds.numpy("request", number).permutation(size)
        positions = order[: max(1, round(step.share * size))].tolist()
    beyond = [position for position in positions if position >= size]
    if beyond:
        raise ValueError(f"request.samples: client {client} has {size} training examples, so none at {beyond[0]}")
    return UnlearningRequest("sample", tuple((client, position) for position in positions), step.after_round)


def _origins(config: RunConfig, field: str) -> Origins:
    """Where the examples of a simulation come from, which its server can read."""
    if config.task.source == "holder":
        raise ValueError(
            f"request.{field} needs the whole data, but with task.source=holder each holder has its own; "
            "use request.clients and request.samples"
        )
    origins = load(config.data).origins
    assert origins is not None, "only a holder's data have none"
    return origins


def name_request(request: UnlearningRequest, federation: Federation) -> str:
    """What a request is called in a report: with the names of classes, and of clients' natural owners."""
    if request.scope == "class":
        names = [federation.facts.classes.names[label] for label in request.targets]
        return f"class{'es' * (len(names) != 1)} {', '.join(names)}"
    owners = federation.facts.owners
    known = [owners[client] for client in request.clients if client < len(owners)]
    return f"{request} ({', '.join(known)})" if known else str(request)
