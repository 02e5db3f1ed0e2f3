"""On Flower's deployment engine, every holder with its own data only, an experiment makes the simulation's models.

Expected values are those of the simulation of the same federation in this process: the global models to the bit, what
they answer in the audit to rounding (a holder's rows are numbered within its own data, which fixes another order).
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from fedforget.cli import main
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.data.holder import FACTS
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.store import load_tensors

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
HOLDERS = 3
# One client is trained at a time, because a node that holds one client cannot stack it with others.
FEDERATION = (
    f"model=linear partition.clients={HOLDERS} request.clients=[1] evaluation=smoke engine.device=cpu "
    "engine.mode=sequential learning.rounds=1 strategies="
)
UNLEARNING = f"{FEDERATION}[finetune] strategy.finetune.rounds=1"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return run_in_process(UNLEARNING, tmp_path_factory.mktemp("simulated"), InProcessGrid(app, 2))


@pytest.fixture(scope="module")
def holders(tmp_path_factory) -> Path:
    """One folder a holder, as `fedforget split` writes them."""
    folder = tmp_path_factory.mktemp("holders")
    assert main(["split", "quickstart", *UNLEARNING.split(), "--to", str(folder)]) == 0
    return folder


def run_in_process(overrides: str, output: Path, grid: InProcessGrid) -> Path:
    Experiment(compose("quickstart", overrides), grid, output, lambda line: None).run()
    return output


def own(holders: Path, client: int) -> dict[str, int | str]:
    return {"client-id": client, "data-path": str(holders / f"client-{client}")}


def stored(output: Path) -> dict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The global models of the one run under ``output`` and their answers, by label (addresses name the data source).

    `none` is the model as it was learned, so that `original` is left out.
    """
    (results,) = output.glob("runs/*/results.jsonl")
    found = {}
    for entry in json.loads(results.read_text().splitlines()[0])["header"]["models"]:
        if entry["label"] != "original" and not entry["stage"]:
            model = load_tensors(output / "store/models" / entry["model"] / "model.safetensors")[0]["model"]
            found[entry["label"]] = (model, load_tensors(output / "store" / entry["outputs"])[0])
    return found


def answers(outputs: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Client, label and logits of each example of an audit set, in an order that does not depend on its rows."""
    columns = [outputs[f"{name}/{part}"][:, None].double() for part in ("clients", "labels")]
    table = torch.cat([*columns, outputs[f"{name}/logits"].double()], 1)
    return torch.stack(sorted(table, key=lambda row: [round(value, 3) for value in row.tolist()]))


def assert_same(output: Path, simulated: Path, labels: set[str]) -> None:
    expected, found = stored(simulated), stored(output)
    assert found.keys() == labels
    for label, (model, outputs) in found.items():
        assert torch.equal(model, expected[label][0])
        for name in ("forget", "retain", "holdout", "test", "far"):
            assert torch.allclose(answers(outputs, name), answers(expected[label][1], name), rtol=0, atol=1e-4)
        for name in ("near", "plane"):  # made by the owner, whose numbering of rows picks other anchors
            assert outputs[f"{name}/logits"].shape == expected[label][1][f"{name}/logits"].shape
            assert set(outputs[f"{name}/clients"].tolist()) == {1}
    assert not torch.equal(found["none"][0], found["retrain"][0])


# ---------------------------------------------------------------------- in this process


def test_holders_of_their_own_data_make_the_models_of_the_simulation(simulated, holders, tmp_path):
    grid = InProcessGrid(app, HOLDERS, {node: own(holders, node - 1) for node in range(1, HOLDERS + 1)})
    assert_same(run_in_process(f"{UNLEARNING} task=holder", tmp_path, grid), simulated, {"none", "retrain", "finetune"})


def test_a_folder_holds_the_examples_of_one_client_and_no_other(holders):
    """The holders' examples are disjoint and together all that are not the test set, 1,797 - ceil(0.2 * 1,797)."""
    from pyarrow import parquet

    folders = [holders / f"client-{client}" for client in range(HOLDERS)]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [FACTS, "test.parquet", "train.parquet"]
    train = [
        [row["image"] + bytes([row["label"]]) for row in parquet.read_table(folder / "train.parquet").to_pylist()]
        for folder in folders
    ]
    assert sum(map(len, train)) == len({example for some in train for example in some}) == 1797 - 360
    assert len({(folder / "test.parquet").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(
    ("overrides", "change", "complaint"),
    [
        ("", {}, "use task.source=holder instead of digits"),
        ("task=holder", {"data-path": None}, "no data-path"),
        ("task=holder", {"client-id": 2}, "client-id=2, but it has the data of \\[1\\]"),
        ("task=holder partition.clients=4", {}, "agreed on 3 clients"),
        ("task=holder", {"data-path": "/absent"}, "/absent/federation.json cannot be read"),
        (
            "task=holder corruption=label_swap corruption.clients=[1]",
            {},
            "corruption.kind is 'label_swap', but a holder's own data .* is not corrupted; use corruption=none",
        ),
    ],
)
def test_a_node_serves_nothing_but_its_own_data(holders, tmp_path, overrides, change, complaint):
    config = {key: value for key, value in (own(holders, 1) | change).items() if value is not None}
    with pytest.raises(ValueError, match=complaint):
        run_in_process(f"{UNLEARNING} {overrides}", tmp_path, InProcessGrid(app, 1, {1: config}))


def test_a_node_refuses_work_for_another_client(holders):
    """A server that sends it all the same gets an error and no data; so does one that asks a node without a folder."""
    from flwr.app import Message

    from fedforget import messages
    from fedforget.data import DataConfig
    from fedforget.data.partition import PartitionConfig
    from fedforget.data.sources import TaskConfig
    from fedforget.messages import Task, Work
    from fedforget.models import ModelConfig
    from fedforget.routines import LocalConfig
    from fedforget.seeds import Seeds

    for source, config in (("holder", own(holders, 1)), ("digits", {"client-id": 1})):
        data = DataConfig(TaskConfig(source), PartitionConfig(clients=HOLDERS))
        task = Task(data, ModelConfig("linear"), LocalConfig(), "cpu", "sequential")
        for kind, asked in (
            (messages.TRAIN, {"clients": (0,), "routine": "fedforget.routines:train"}),
            (messages.EVALUATE, {"parts": ((0, "train", 0, 10),)}),
        ):
            grid = InProcessGrid(app, 1, {1: config})
            content = messages.pack(Work(task.to_json(), Seeds(0), **asked))
            (reply,) = grid.send_and_receive([Message(content, 1, kind)])
            assert reply.has_error() and "serves only client 1, but was asked for [0]" in reply.error.reason


def test_a_folder_that_changed_is_refused(holders, tmp_path):
    folder = tmp_path / "client-1"
    folder.mkdir()
    for name in (FACTS, "test.parquet"):
        (folder / name).write_bytes((holders / "client-1" / name).read_bytes())
    (folder / "train.parquet").write_bytes((holders / "client-0" / "train.parquet").read_bytes())
    grid = InProcessGrid(app, 1, {1: {"data-path": str(folder)}})
    with pytest.raises(ValueError, match="agree on it anew"):
        run_in_process(f"{UNLEARNING} task=holder", tmp_path, grid)


def test_records_of_clients_lie_where_their_node_says(holders, tmp_path):
    """Each node keeps its own client's steps, and nothing where the server's message says; the models are those of a
    simulation."""
    overrides, labels = f"{FEDERATION}[amnesiac_client]", {"none", "retrain", "amnesiac_client"}
    simulated = run_in_process(overrides, tmp_path / "simulated", InProcessGrid(app, 2))
    shelves = [tmp_path / f"shelf-{client}" for client in range(HOLDERS)]
    nodes = {n + 1: {**own(holders, n), "shelf-path": str(shelf)} for n, shelf in enumerate(shelves)}
    deployed = run_in_process(f"{overrides} task=holder", tmp_path / "deployed", InProcessGrid(app, HOLDERS, nodes))
    assert_same(deployed, simulated, labels)
    assert [len(list(shelf.rglob("client-*/0-1.safetensors"))) for shelf in shelves] == [0, 1, 0]
    assert list(simulated.rglob("clients/client-1")) and not list(deployed.rglob("clients"))
    grid = InProcessGrid(app, HOLDERS, {node: own(holders, node - 1) for node in range(1, HOLDERS + 1)})
    left_out = run_in_process(f"{overrides} task=holder", tmp_path / "without", grid)
    (results,) = left_out.glob("runs/*/results.jsonl")
    assert "a node config has no shelf-path" in results.read_text() and stored(left_out).keys() == {"none", "retrain"}


# ---------------------------------------------------------------------- SuperLink and SuperNodes


class Deployment:
    """A SuperLink, SuperNodes and a user of the federation on loopback, each with a Flower home of its own.

    Args:
        folder: gets the homes and the logs; every process started here is known by its home, and ended by it.
        link: further arguments of the SuperLink.
        node: further arguments of each SuperNode.
        connection: how the user's connection to the SuperLink is secured.
    """

    def __init__(self, folder: Path, link: Sequence[str], node: Sequence[str], connection: str) -> None:
        self.folder, self._node = folder, node
        self._started: list[subprocess.Popen] = []
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(1 + HOLDERS)]
        self._port, *self._node_ports = (each.getsockname()[1] for each in sockets)
        for each in sockets:
            each.close()
        home = folder / "user"
        home.mkdir(parents=True)
        address = f'address = "127.0.0.1:{self._port}"'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\n{address}\n{connection}\n')
        address = ("--host", "127.0.0.1", "--port", str(self._port))
        self._start("link", "flower-superlink", *address, "--disable-runtime-dependency-installation", *link)

    def wait(self) -> None:
        """Until the SuperLink listens."""
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.1)

    def start_node(self, client: int, holders: Path, *arguments: str) -> subprocess.Popen:
        """Start the SuperNode of one holder."""
        config = f'client-id={client} data-path="{holders / f"client-{client}"}"'
        address = ("--superlink", f"127.0.0.1:{self._port}", "--port", str(self._node_ports[client]))
        everything = (*address, "--node-config", config, *self._node, *arguments)
        return self._start(f"node-{client}", "flower-supernode", *everything)

    def flwr(self, *arguments: str) -> str:
        """Run a command of the federation's user; returns what it printed."""
        command = [str(BIN / "flwr"), *arguments]
        environment = self._environment("user")
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def run(self, overrides: str) -> Path:
        """Run the experiment on the holders' data; returns the output folder."""
        output = self.folder / "output"
        settings = f'output-dir="{output}" overrides="{overrides} task=holder engine.nodes={HOLDERS}"'
        said = self.flwr("run", ".", "here", "--stream", "--run-config", settings)
        assert f"on {HOLDERS} SuperNodes" in said and "oracle (retrain)" in said, said + self.logs()
        return output

    def logs(self) -> str:
        """The end of what each process wrote."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """End every process of the deployment, and those that they started."""
        ended = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FLWR_HOME", "").startswith(f"{self.folder}/"):
                    process.kill()
                    ended.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        for started in self._started:
            started.kill()
            started.wait()
        psutil.wait_procs(ended, timeout=10)

    def _start(self, name: str, command: str, *arguments: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("a") as log:
            environment = self._environment(name)
            whole = [str(BIN / command), *arguments]
            process = subprocess.Popen(whole, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self._started.append(process)
        return process

    def _environment(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            "FLWR_HOME": str(self.folder / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        }


@contextmanager
def deployed(folder: Path, link: Sequence[str], node: Sequence[str], connection: str) -> Iterator[Deployment]:
    deployment = Deployment(folder, link, node, connection)
    try:
        deployment.wait()
        yield deployment
    finally:
        deployment.end()


def test_three_supernodes_make_the_models_of_the_simulation(simulated, holders, tmp_path):
    with deployed(tmp_path / "deployment", ["--insecure"], ["--insecure"], "insecure = true") as deployment:
        for client in range(HOLDERS):
            deployment.start_node(client, holders)
        assert_same(deployment.run(UNLEARNING), simulated, {"none", "retrain", "finetune"})


def test_the_same_with_tls_and_authenticated_supernodes(simulated, holders, tmp_path):
    """A SuperNode whose key nobody registered is turned away; once all are registered they make the models."""
    certificates = make_certificates(tmp_path / "certificates")
    root = str(certificates / "ca.pem")
    link = ["--ssl-ca-certfile", root, "--ssl-certfile", str(certificates / "server.pem")]
    link += ["--ssl-keyfile", str(certificates / "server.key"), "--enable-supernode-auth"]
    keys = [make_key(tmp_path / f"key-{client}") for client in range(HOLDERS)]
    secured = ["--root-certificates", root]
    with deployed(tmp_path / "deployment", link, secured, f'root-certificates = "{root}"') as deployment:
        stranger = deployment.start_node(0, holders, "--auth-supernode-private-key", str(keys[0]))
        assert stranger.wait(timeout=60) != 0, deployment.logs()
        for client, key in enumerate(keys):
            deployment.flwr("supernode", "register", f"{key}.pub", "here")
            deployment.start_node(client, holders, "--auth-supernode-private-key", str(key))
        # Learning, the request, the oracle and the audit: what is encrypted does not depend on who unlearns.
        assert_same(deployment.run(f"{FEDERATION}[none]"), simulated, {"none", "retrain"})


def make_certificates(folder: Path) -> Path:
    """A certificate authority and the certificate of a server on loopback, valid for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in keys}
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    # Python 3.13 refuses certificates that do not say who issued them and what for.
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key())
    fields = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    fields += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    used = {"ca": {"key_cert_sign", "crl_sign"}, "server": {"digital_signature"}}
    usage = {name: x509.KeyUsage(**{field: field in mine for field in fields}) for name, mine in used.items()}
    for name, key in keys.items():
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(usage[name], critical=True)
            .sign(keys["ca"], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    return folder


def make_key(path: Path) -> Path:
    """The private key of a key pair as ``ssh-keygen -t ecdsa -b 384 -N ''`` makes it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.write_bytes(private)
    path.with_name(f"{path.name}.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return path
