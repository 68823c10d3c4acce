"""One Apache Kafka node (KRaft) for all tests of a run, on free loopback ports in a fresh folder."""

import atexit
import datetime
import hashlib
import ipaddress
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.servers import free_port, need, stop_process, wait_for_port

ROOT: Final = Path(__file__).resolve().parent.parent
POM: Final = Path(__file__).resolve().parent / "kafka" / "pom.xml"
QUICK_START: Final = (
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
CLUSTER_ID: Final = "4L6g3nShT-eMCtK--X86sw"
_lock = threading.Lock()
_running: list["KafkaServer"] = []


class KafkaServer:
    """A node with `brokers` to connect to. `kill` and `start` again keep its data. `secure_brokers` want TLS, with
    the certificate in `ca_file`, and the user `auditor` with its `password`."""

    password = "wörd of the auditor"

    def __init__(self, jars: Path) -> None:
        self._jars = jars
        self._folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self._port, secure = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.brokers, self.secure_brokers = f"127.0.0.1:{self._port}", f"127.0.0.1:{secure}"
        self.ca_file, key_file = self._folder / "ca.pem", self._folder / "server.pem"
        _make_certificate(self.ca_file, key_file)
        controller = free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.brokers},SECURE://{self.secure_brokers},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.brokers},SECURE://{self.secure_brokers}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": str(key_file),
            "listener.name.secure.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secure.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_auditor="{self.password}";'
            ),
            "log.dirs": str(self._folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            # After a kill the node waits until its earlier registration has lapsed.
            "broker.session.timeout.ms": "600",
            "broker.heartbeat.interval.ms": "150",
        }
        self._config = self._folder / "server.properties"
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        self._config.write_bytes(text.encode("ascii", "backslashreplace").replace(b"\\x", b"\\u00"))
        self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(self._config))

    def start(self) -> None:
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["java", *QUICK_START, "-Xmx384m", "-cp", f"{self._jars}/*", "kafka.Kafka", str(self._config)],
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
            )
        wait_for_port(self._port, self._process, 60.0, log)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            stop_process(self._process, signal.SIGKILL)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _java(self, *arguments: str) -> None:
        command = ["java", "-cp", f"{self._jars}/*", *arguments]
        done = subprocess.run(command, capture_output=True, cwd=self._folder, check=False, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} failed: {done.stderr.decode(errors='replace')[-2000:]}")


def _make_certificate(certificate: Path, key_and_certificate: Path) -> None:
    """A certificate for the loopback address, signed by itself, and the same behind its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kafka of a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    certificate.write_bytes(made)
    key_and_certificate.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made
    )


def kafka_server() -> KafkaServer:
    """The node of this test run, started when first asked for; skips where Java or Maven is missing."""
    need(shutil.which("java"), "Java for Apache Kafka")
    with _lock:
        if not _running:
            server = KafkaServer(_jars())
            atexit.register(server.remove)
            server.start()
            _running.append(server)
        return _running[0]


def _jars() -> Path:
    """The folder of the jars, filled by Maven once per version of the POM."""
    version = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    folder = ROOT / ".cache" / "kafka" / version
    if not folder.exists():
        need(shutil.which("mvn"), "Maven to fetch Apache Kafka")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fresh}"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=300, env={**os.environ})
        if done.returncode or not list(fresh.glob("kafka_*.jar")):
            shutil.rmtree(fresh, ignore_errors=True)
            need(False, f"the jars of Apache Kafka (Maven: {done.stdout.decode(errors='replace')[-300:].strip()})")
        fresh.chmod(0o755)
        fresh.rename(folder)
    return folder
