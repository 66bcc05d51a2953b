"""The queue on a Kafka with authentication, TLS and access rules."""

import datetime as dt
from collections.abc import Iterator
from ipaddress import ip_address
from uuid import uuid4

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chargegate.engines.kafka import KafkaQueue
from chargegate.model import new_request_id, now_ms
from chargegate.queues.base import Message, QueueUnavailable
from ports import free_port
from scenario import run
from servers.engines import Kafka
from servers.fixtures import provide
from servers.server import GivenServer, Server

pytestmark = pytest.mark.servers

PASSWORD = "p%40ss-word"
WHO_MAY = "User:gate"


class SecuredKafka(Kafka):
    """Beside the open listener, whose clients may do everything, one with SASL over TLS, whose ``gate`` may nothing."""

    name = "secured-kafka"

    def __init__(self) -> None:
        super().__init__()
        self.secured = free_port()

    @property
    def certificate(self) -> str:
        return str(self.folder / "certificate.pem")

    def options(self) -> dict[str, object]:
        options = super().options()
        options["listeners"] = f"{options['listeners']},SECURED://127.0.0.1:{self.secured}"
        options["advertised.listeners"] = f"{options['advertised.listeners']},SECURED://127.0.0.1:{self.secured}"
        options["listener.security.protocol.map"] = f"{options['listener.security.protocol.map']},SECURED:SASL_SSL"
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        return options | {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": f'{login} user_gate="p@ss-word";',
            "listener.name.secured.ssl.keystore.type": "PEM",
            "listener.name.secured.ssl.keystore.location": self.folder / "keystore.pem",
        }

    def prepare(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        encoding = serialization.Encoding.PEM
        in_clear = serialization.NoEncryption()
        public = certificate.public_bytes(encoding)
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, in_clear)
        (self.folder / "certificate.pem").write_bytes(public)
        (self.folder / "keystore.pem").write_bytes(private + public)
        super().prepare()

    def secured_url(self, topic: str, *options: str, password: str = PASSWORD) -> str:
        query = "&".join(["sasl_mechanism=PLAIN", f"ssl.ca.location={self.certificate}", *options])
        return f"kafka://gate:{password}@127.0.0.1:{self.secured}/{topic}?{query}"

    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": f"127.0.0.1:{self.port}"})

    def allow(self, name: str, kind: ResourceType, *operations: AclOperation) -> None:
        rules = [
            AclBinding(kind, name, ResourcePatternType.PREFIXED, WHO_MAY, "*", operation, AclPermissionType.ALLOW)
            for operation in operations
        ]
        admin = self.admin
        for made in admin.create_acls(rules).values():
            made.result(10)


@pytest.fixture(scope="module")
def kafka() -> Iterator[Server | GivenServer]:
    yield from provide(SecuredKafka)


@pytest.fixture
def topic() -> str:
    return f"t{uuid4().hex[:12]}"


def test_a_user_over_tls_puts_and_receives(kafka: SecuredKafka, topic: str) -> None:
    kafka.allow(topic, ResourceType.TOPIC, AclOperation.ALL)
    kafka.allow(topic, ResourceType.GROUP, AclOperation.READ)

    async def scenario() -> None:
        queue = await KafkaQueue.open(kafka.secured_url(topic, "partitions=2"), 10)
        message = Message(new_request_id(), str(uuid4()), now_ms(), b"sealed")
        await queue.put(message)
        (delivery,) = await queue.receive(1)
        assert delivery.message == message
        await queue.check()
        await queue.close()

    run(scenario())


async def refusal(url: str) -> str:
    with pytest.raises(QueueUnavailable) as caught:
        await KafkaQueue.open(url, 10)
    assert "ss-word" not in str(caught.value)
    return str(caught.value)


def test_who_may_not_make_the_topic_is_told(kafka: SecuredKafka, topic: str) -> None:
    kafka.allow(topic, ResourceType.TOPIC, AclOperation.DESCRIBE)

    async def scenario() -> None:
        told = await refusal(kafka.secured_url(topic))
        assert f"refuses to make the topic {topic} and {topic}.dead" in told
        assert "uthorization failed" in told

    run(scenario())


@pytest.mark.parametrize("made", [True, False])
def test_who_may_not_use_the_topic_is_told(kafka: SecuredKafka, topic: str, made: bool) -> None:
    if made:
        admin = kafka.admin
        for future in admin.create_topics([NewTopic(topic, 1), NewTopic(f"{topic}.dead", 1)]).values():
            future.result(10)

    async def scenario() -> None:
        told = await refusal(kafka.secured_url(topic))
        assert f"needs Describe, Read and Write on the topics {topic} and {topic}.dead" in told

    run(scenario())


def test_who_may_not_use_the_group_is_told(kafka: SecuredKafka, topic: str) -> None:
    kafka.allow(topic, ResourceType.TOPIC, AclOperation.ALL)

    async def scenario() -> None:
        assert "Read on the group strangers" in await refusal(kafka.secured_url(topic, "group=strangers"))

    run(scenario())


def test_a_wrong_password_is_told(kafka: SecuredKafka, topic: str) -> None:
    async def scenario() -> None:
        assert "uthentication failed" in await refusal(kafka.secured_url(topic, password="wrong-pass-word"))

    run(scenario())
