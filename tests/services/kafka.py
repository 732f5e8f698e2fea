"""Apache Kafka: one node with KRaft, from its Maven artifacts, with a plaintext and a SASL/PLAIN listener."""

from __future__ import annotations

import base64
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any, Final

from tests.services.place import Place, ServiceFailed, check_free
from tests.services.server import Server, run

VERSION: Final = "4.3.1"
TOLD: Final = ("EVERLOG_TEST_KAFKA", "EVERLOG_TEST_KAFKA_SASL")
_FETCH_S: Final = 300.0
_READY_S: Final = 90.0
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>everlog</groupId><artifactId>services</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""
_SETTINGS: Final = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="{password}" user_admin="{password}" user_shop="{password}";
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
"""


class Kafka:
    """One broker. The user of its SASL listener is `shop`."""

    name = "kafka"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.folder / "kafka"
        self._server = Server(place.folder, self.name)

    def up(self) -> None:
        """Start it, if it does not run and answer.

        Raises:
            ServiceFailed: It cannot be fetched, or does not start.
        """
        plain, sasl, controller = [self._place.port(name) for name in ("kafka", "kafka_sasl", "kafka_controller")]
        password = self._place.secret(self.name)
        if self._server.process is None or self._why_not(plain) is not None:
            self._server.stop(signal.SIGTERM)
            self._fetch()
            for port, variable in ((plain, "KAFKA"), (sasl, "KAFKA_SASL"), (controller, "KAFKA_CONTROLLER")):
                check_free(port, self.name, f"EVERLOG_TEST_{variable}_PORT")
            self._start(plain, sasl, controller, password)
        self._place.tell(
            {
                "EVERLOG_TEST_KAFKA": f"kafka://127.0.0.1:{plain}",
                "EVERLOG_TEST_KAFKA_SASL": f"kafka://shop:{password}@127.0.0.1:{sasl}?security=sasl_plaintext",
            }
        )

    @property
    def _java(self) -> list[str]:
        return ["java", "-Xms256m", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._jars}/*"]

    @property
    def _jars(self) -> Path:
        return self._folder / f"lib-{VERSION}"

    def _fetch(self) -> None:
        if self._jars.exists():
            return
        self._folder.mkdir(exist_ok=True)
        pom = self._folder / "pom.xml"
        pom.write_text(_POM)
        new = self._folder / "lib-new"
        shutil.rmtree(new, ignore_errors=True)
        run(
            [
                "mvn",
                "-q",
                "-B",
                "-f",
                str(pom),
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                f"-DoutputDirectory={new}",
            ],
            "kafka: fetching it",
            within_s=_FETCH_S,
        )
        new.rename(self._jars)  # whole, or not there

    def _start(self, plain: int, sasl: int, controller: int, password: str) -> None:
        settings = self._folder / "server.properties"
        data = self._folder / "data"
        settings.touch(mode=0o600)
        settings.write_text(_SETTINGS.format(plain=plain, sasl=sasl, controller=controller, password=password, data=data))
        if not (data / "meta.properties").exists():
            name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            run(
                [*self._java, "kafka.tools.StorageTool", "format", "-t", name, "-c", str(settings)],
                "kafka: making its data",
                within_s=60,
            )
        self._server.start(
            [*self._java, "kafka.Kafka", str(settings)], is_healthy=lambda: self._why_not(plain), within_s=_READY_S
        )

    def _why_not(self, port: int) -> str | None:
        try:
            from confluent_kafka import KafkaException
            from confluent_kafka.admin import AdminClient
        except ImportError as error:
            raise ServiceFailed("kafka: its health cannot be asked: pip install confluent-kafka") from error

        client: Any = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
        try:
            client.list_topics(timeout=2)
        except KafkaException as error:
            return str(error)
        return None

    def down(self) -> bool:
        """Stop it, if it runs; tell whether it did."""
        self._place.forget(TOLD)
        return self._server.stop(signal.SIGTERM)
