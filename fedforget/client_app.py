"""The one ClientApp: it describes its node, runs routines for the clients it hosts, and evaluates models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedforget import engine, messages

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOSTED = "client-id"  # in the node config of a deployed SuperNode: the one client whose data it holds

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Which clients this node hosts (all of them in simulation, its own when deployed), and their sizes."""
    work, _ = messages.unpack(message.content)
    try:
        bench = engine.workbench(work.task)
    except ValueError as error:  # what the user must mend: sent as a sentence, not as a traceback
        return Message(messages.pack_reply({}, {"node": {"error": str(error)}}), reply_to=message)
    federated = bench.data
    hosted = context.node_config.get(HOSTED)
    clients = range(federated.num_clients) if hosted is None else [int(hosted)]
    report = {
        str(client): {"num_train": federated.num_train(client), "class_counts": federated.class_counts(client)}
        for client in clients
    }
    about = {
        "device": str(bench.inputs.device),
        "torch": torch.__version__,
        "input_shape": list(federated.input_shape),
        "num_classes": federated.num_classes,
        "num_test": len(federated.test_labels),
        "corruption": federated.record,
        "data": federated.fingerprint,
    }
    return Message(messages.pack_reply({}, {"node": about, **report}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run the routine for each client asked; the reply holds one vector a client, or their sum."""
    work, vectors = messages.unpack(message.content)
    arrays, report = engine.train(work, vectors)
    return Message(messages.pack_reply(arrays, report), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Logits and labels of a model on each part asked."""
    work, vectors = messages.unpack(message.content)
    arrays: dict[str, NDArray] = {}
    report: dict[str, dict] = {}
    for number, logits, labels, entry in engine.evaluate(work, vectors["model"]):
        report[str(number)] = entry
        arrays[f"{number}/logits"], arrays[f"{number}/labels"] = logits, labels
    return Message(messages.pack_reply(arrays, report), reply_to=message)
