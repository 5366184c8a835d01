"""Clients of a Kafka cluster, through confluent-kafka: the extra `sage-kernel[kafka]`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from sage.common.errors import BadRequestError, ConfigError, NotFoundError, SageError, UnreachableError
from sage.kernel.connectors.extras import needed
from sage.kernel.registry import nearest

__all__ = ["WAIT", "Brokers"]

WAIT: Final = 0.1
"""Seconds that a thread waits for a client, and so the longest that a close waits for the thread."""
OWN: Final = frozenset(
    {
        "bootstrap.servers",
        "auto.offset.reset",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "isolation.level",
        "message.timeout.ms",
        "transactional.id",
    }
)
"""Properties that the connectors set themselves, as their promises rest on them."""
PREFETCH: Final = {"queued.max.messages.kbytes": 16384, "queued.min.messages": 10_000}
"""What a reader asks for ahead; while that is there, it asks for no more."""
SECRET: Final = re.compile(r"password|secret|key|token|oauthbearer\.config|sasl\.username", re.IGNORECASE)
VARIABLE: Final = re.compile(r"\$\{(\w+)\}")


class Brokers:
    """How a cluster is reached, and its errors in words that never hold a secret.

    `servers`: "host:port,…". `options`: librdkafka's properties; `${NAME}` in a value is that variable of
    the environment. `timeout`: seconds within which a broker must answer.
    """

    def __init__(self, servers: str, options: Mapping[str, str] | None, timeout: float) -> None:
        self.servers, self.timeout = servers, timeout
        self._given = dict(options or {})
        taken = sorted(OWN & self._given.keys())
        if taken:
            raise BadRequestError(f"the option {taken[0]!r} is the connector's own; leave it out.")
        if timeout <= 0:
            raise BadRequestError(f"timeout={timeout:g}: it is more than 0 seconds.")
        self._kafka = needed("confluent_kafka", "kafka")
        self._secrets: list[str] = []
        self.trouble = ""  # what the client last said about its connections; "" once it was looked at
        self.unreachable = False  # whether all brokers were away, since it was last looked at

    @property
    def codes(self) -> Any:
        """The class with the codes of errors."""
        return self._kafka.KafkaError

    @property
    def failure(self) -> type[Exception]:
        """What a call of a client raises."""
        raised: type[Exception] = self._kafka.KafkaException
        return raised

    def consumer(self, group: str, **properties: Any) -> Any:
        """A client that reads."""
        # Nothing is stored for the group unless it is asked for; a client needs a name of one all the same.
        own = {"enable.auto.commit": False, "enable.auto.offset.store": False, "group.id": group}
        return self._made(self._kafka.Consumer, PREFETCH, own | properties)

    def producer(self, **properties: Any) -> Any:
        """A client that writes, each message once and in order for as long as it lives."""
        limit = max(1, int(self.timeout * 1000))
        defaults = {"partitioner": "murmur2_random", "transaction.timeout.ms": max(60_000, limit)}
        own = {"enable.idempotence": True, "delivery.timeout.ms": limit}
        return self._made(self._kafka.Producer, defaults, own | properties)

    def place(self, topic: str, partition: int, offset: int = -1001) -> Any:
        """An offset of a partition."""
        return self._kafka.TopicPartition(topic, partition, offset)

    def partitions(self, client: Any, topic: str) -> list[int]:
        """Those of a topic; raises NotFoundError, and UnreachableError if no broker answers in time."""
        try:
            # All of them: asked for one by name, some brokers would make it.
            topics = client.list_topics(timeout=self.timeout).topics
        except self.failure as error:
            raise self.error(error.args[0], client) from None
        self.unreachable = False
        if topic not in topics or topics[topic].error is not None:
            names = sorted(name for name in topics if not name.startswith("__"))
            some = ", ".join(names[:20]) + (" …" if len(names) > 20 else "") if names else "none"
            raise NotFoundError(
                f"{self.servers} has no topic {topic!r}{nearest(topic, names)}; there are: {some}."
            )
        return sorted(topics[topic].partitions)

    def error(self, found: Any, client: Any = None, doing: str = "") -> SageError:
        """An error of the client in the project's words."""
        codes = self.codes
        if client is not None:
            client.poll(0)  # lets it say what was wrong with its connections
        text = self.hidden(found.str())
        doing = f"{doing}: " if doing else ""
        away = (
            codes._TRANSPORT,
            codes._TIMED_OUT,
            codes._ALL_BROKERS_DOWN,
            codes._RESOLVE,
            codes._MSG_TIMED_OUT,
        )
        if found.code() in away:
            last = f" at last: {self.trouble}" if self.trouble else f" {text}"
            self.trouble = ""
            return UnreachableError(
                f"{doing}no broker of {self.servers} answered within {self.timeout:g} s;{last}."
            )
        return BadRequestError(f"{doing}{self.servers}: {text.rstrip('.')}.")

    def hidden(self, text: str) -> str:
        """The text without any secret of the options."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    def _made(self, kind: Any, defaults: dict[str, Any], own: dict[str, Any]) -> Any:
        given = {name: self._filled(name, value) for name, value in self._given.items()}
        self._secrets = [value for name, value in given.items() if value and SECRET.search(name)]
        # What it would log comes through the callback: the log of a run is no place for a line per attempt.
        quiet = {"log_level": "0", "error_cb": self._note}
        config = {**defaults, **quiet, **given, "bootstrap.servers": self.servers, **own}
        try:
            return kind(config)
        except self.failure as error:
            raise BadRequestError(f"the options for Kafka: {self.hidden(error.args[0].str())}.") from None

    def _filled(self, option: str, value: str) -> str:
        def variable(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise ConfigError(
                    f"the option {option!r} needs the environment variable {match[1]}, which is not set."
                )
            return os.environ[match[1]]

        return VARIABLE.sub(variable, value)

    def _note(self, error: Any) -> None:
        if error.code() == self.codes._ALL_BROKERS_DOWN:
            self.unreachable = True
        else:
            self.trouble = self.hidden(error.str())
