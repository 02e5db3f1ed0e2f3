"""The one ClientApp: it describes its node, runs routines for the clients it hosts, and evaluates models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedforget import messages
from fedforget.client import answering, training, workbench
from fedforget.data import FederatedData, load
from fedforget.data.audit_sets import TEST
from fedforget.messages import Task, Work
from fedforget.store import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

# In the node config of a deployed SuperNode:
HOSTED = "client-id"  # the one client that it serves
SHELVES = "shelf-path"  # an absolute folder for what it keeps of its training, see `fedforget.exchange.Card`
FOLDER = "data-path"  # the folder with that client's data and nobody else's (fedforget/data/holder.py)

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Which clients this node hosts (all of them in simulation, its own when deployed), and their sizes."""
    try:
        work, _ = _accepted(message, context)
        task = Task.from_json(work.task)
        device = workbench.device_of(task.device, task.precision)
        federated = load(task.data)
        hosted = _hosted(federated, context)
    except ValueError as error:  # what the user must mend: sent as a sentence, not as a traceback
        return Message(messages.pack_reply({}, {"node": {"error": str(error)}}), reply_to=message)
    report = {
        str(client): {"num_train": federated.num_train(client), "class_counts": federated.class_counts(client)}
        for client in hosted
    }
    about = {
        "device": str(device),
        "torch": torch.__version__,
        "input_shape": list(federated.input_shape),
        "num_classes": federated.num_classes,
        "num_test": len(federated.test_labels),
        "corruption": federated.record,
        "data": federated.fingerprint,
        "facts": federated.facts.to_dict(),
    }
    return Message(messages.pack_reply({}, {"node": about, **report}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run the routine for each client asked; the reply holds one vector a client, or their sum."""
    work, vectors = _accepted(message, context)
    arrays, report = training.train(work, vectors)
    return Message(messages.pack_reply(arrays, report), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """What models answer on each part asked."""
    work, vectors = _accepted(message, context)
    arrays, report = answering.evaluate(work, vectors)
    return Message(messages.pack_reply(arrays, report), reply_to=message)


def _accepted(message: Message, context: Context) -> tuple[Work, dict[str, NDArray]]:
    """What a message asks, with this node's own folder in it.

    Raises:
        ValueError: if it asks for data other than this node's.
    """
    work, vectors = messages.unpack(message.content)
    task = Task.from_json(work.task)
    folder, source = context.node_config.get(FOLDER), task.data.task.source
    if folder is None and source == "holder":
        raise ValueError(f"task.source=holder, but a SuperNode's node config has no {FOLDER}")
    if folder is not None:
        if source != "holder":
            raise ValueError(f"a SuperNode serves only its own {FOLDER}; use task.source=holder instead of {source}")
        own = replace(task.data, task=replace(task.data.task, path=str(folder)))
        work = replace(work, task=replace(task, data=own).to_json(), shelves=_own_shelves(work, context))
    if HOSTED in context.node_config:
        hosted = _hosted(load(Task.from_json(work.task).data), context)
        asked = {*work.clients, *(client for client, *_ in work.parts if client != TEST)}
        if not asked.issubset(hosted):
            raise ValueError(f"a SuperNode serves only client {hosted[0]}, but was asked for {sorted(asked)}")
    return work, vectors


def _own_shelves(work: Work, context: Context) -> str:
    """The folder of this node for what the message would have clients keep in another, if it would.

    Raises:
        ValueError: if its node config names none.
    """
    if work.shelves and not context.node_config.get(SHELVES):
        raise ValueError(f"this strategy has clients keep records of their own, but a node config has no {SHELVES}")
    return str(Path(str(context.node_config[SHELVES])) / digest(Path(work.shelves).parts[-3:])) if work.shelves else ""


def _hosted(data: FederatedData, context: Context) -> Sequence[int]:
    """The clients that this node serves.

    Raises:
        ValueError: if its node config names a client whose data is not there.
    """
    named, held = context.node_config.get(HOSTED), data.held
    if named is None:
        return held
    if named not in held:
        raise ValueError(f"a SuperNode's node config has {HOSTED}={named}, but it has the data of {list(held)}")
    return (int(named),)
