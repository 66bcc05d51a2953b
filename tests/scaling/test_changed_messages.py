"""Messages that somebody with access to a broker changed: no worker allows anything by them, or sends a token."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import aio_pika
import asyncpg
import msgspec
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from outside import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outside import Site
    from scaling.cluster import Cluster
    from scaling.engines import Engine

STATION, OTHER = "0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"
Message = dict[str, Any]  # request_id, station_id, accepted_at, body


def flip(body: bytes, place: int) -> bytes:
    changed = bytearray(body)
    changed[place] ^= 1
    return bytes(changed)


def changes() -> dict[str, Callable[[Message], Message]]:
    """What is done to one message each."""
    return {
        "none": lambda message: message,
        "station": lambda message: message | {"station_id": OTHER},
        "time": lambda message: message | {"accepted_at": message["accepted_at"] + 1},
        "request": lambda message: message | {"request_id": str(uuid.uuid4())},
        "version": lambda message: message | {"body": b"\x01" + message["body"][1:]},
        "old and elsewhere": lambda message: message | {"station_id": OTHER, "body": b"\x01" + message["body"][1:]},
        "nonce": lambda message: message | {"body": flip(message["body"], 5)},
        "content": lambda message: message | {"body": flip(message["body"], 30)},
        "tag": lambda message: message | {"body": flip(message["body"], -1)},
    }


def test_a_changed_message_is_never_allowed(engine: Engine, clusters: Callable[..., Cluster], receiver: Site) -> None:
    """An API alone accepts, the messages are changed on the server, and then a worker takes them."""
    with clusters(engine.new_queue(), **{"authorization.backend": "acl"}) as cluster:
        api = cluster.add("api")
        cluster.start()
        urls, expected = [], {}
        for number, name in enumerate(changes()):
            token = f"changed-{uuid.uuid4().hex}"
            entry = {"driver_token": token, "denied_stations": [STATION]}
            assert api._client.put("/api/v1/acl", json=entry).status_code == 200
            urls.append(receiver.url(f"/changed/{engine.name}/{number}"))
            body = {"station_id": STATION, "driver_token": token, "callback_url": urls[-1]}
            answer = api.post(body)
            assert answer.status_code == 202, answer.text
            expected[answer.json()["request_id"]] = name
        changed = REWRITE[engine.name](cluster.queue_url, expected)
        worker = cluster.add("worker")
        cluster.start()
        rows = eventually(lambda: len(found := list(cluster.decisions())) >= len(changed) and found, 60, cluster.tails)
        verdicts = {row["request_id"]: (row["status"], row["reason"]) for row in rows}
        for request_id, name in changed.items():
            wanted = ("not_allowed", "not_at_this_location") if name == "none" else ("invalid", "malformed_request")
            assert verdicts[request_id] == wanted, name
        eventually(lambda: receiver.calls_to(urls[0]), 30)
        assert [len(receiver.calls_to(url)) for url in urls] == [1] + [0] * (len(urls) - 1)
        logs = [(process.folder / "log").read_text() for process in (api, worker)]
        assert not any("changed-" in log for log in logs)
        assert logs[1].count("is not as it was accepted") == len(changed) - 1


# How each server's messages are changed. All of it returns what was done to which request, by its id on the server.


def change(messages: list[Message], names: dict[str, str]) -> Iterator[tuple[Message, Message, str]]:
    for message in messages:
        name = names[message["request_id"]]
        yield message, changes()[name](message), name


def in_redis(url: str, names: dict[str, str]) -> dict[str, str]:
    done = {}
    with contextlib.closing(redis.Redis.from_url(url)) as server:
        stream = "{chargegate}:queue"
        entries = server.xrange(stream)
        for entry, fields in entries:
            before = {
                "request_id": fields[b"request_id"].decode(),
                "station_id": fields[b"station_id"].decode(),
                "accepted_at": int(fields[b"accepted_at"]),
                "body": fields[b"body"],
            }
            [(_, after, name)] = change([before], names)
            new = server.xadd(stream, after | {"traceparent": ""})
            server.xdel(stream, entry)
            server.hset("{chargegate}:queue:ids", after["request_id"], new)
            done[after["request_id"]] = name
    return done


def in_postgres(url: str, names: dict[str, str]) -> dict[str, str]:
    async def rewrite() -> dict[str, str]:
        done = {}
        connection = await asyncpg.connect(url)
        table = await connection.fetchval(
            "SELECT table_name FROM information_schema.columns WHERE column_name = 'lease_until'"
            " AND table_schema = current_schema()"
        )
        rows = [dict(row) for row in await connection.fetch(f"SELECT * FROM {table}")]
        for before, after, name in change(rows, names):
            await connection.execute(
                f"UPDATE {table} SET request_id = $2, station_id = $3, accepted_at = $4, body = $5 WHERE seq = $1",
                *(before["seq"], after["request_id"], after["station_id"], after["accepted_at"], after["body"]),
            )
            done[after["request_id"]] = name
        await connection.close()
        return done

    return asyncio.run(rewrite())


def in_rabbitmq(url: str, names: dict[str, str]) -> dict[str, str]:
    base, _, name_of_queue = url.partition("?queue=")

    async def rewrite() -> dict[str, str]:
        done = {}
        connection = await aio_pika.connect(base)
        async with connection, connection.channel() as channel:
            queue = await channel.get_queue(name_of_queue)
            incoming = [await queue.get(timeout=30) for _ in names]
            for each in incoming:
                assert each is not None
                before = {
                    "request_id": each.correlation_id,
                    "station_id": each.headers["station_id"],
                    "accepted_at": each.headers["accepted_at"],
                    "body": each.body,
                }
                [(_, after, name)] = change([before], names)
                headers = dict(each.headers) | {key: after[key] for key in ("station_id", "accepted_at")}
                message = aio_pika.Message(
                    after["body"], headers=headers, correlation_id=after["request_id"], delivery_mode=2
                )
                await channel.default_exchange.publish(message, name_of_queue)
                await each.ack()
                done[after["request_id"]] = name
        return done

    return asyncio.run(rewrite())


def in_kafka(url: str, names: dict[str, str]) -> dict[str, str]:
    """A record cannot be changed: those of the topic are deleted, and others put into it."""
    servers, _, rest = url.removeprefix("kafka://").partition("/")
    topic = rest.partition("?")[0]
    consumer = Consumer({"bootstrap.servers": servers, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    partitions = [
        TopicPartition(topic, number, 0) for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions
    ]
    consumer.assign(partitions)
    found: list[tuple[Message, Any]] = []

    def read() -> bool:
        record = consumer.poll(1)
        if record is not None and record.error() is None and dict(record.headers() or ()).get("schema") == b"1":
            values = msgspec.msgpack.decode(record.value())
            found.append((dict(zip(("request_id", "station_id", "accepted_at", "body"), values, strict=True)), record))
        return len(found) == len(names)

    eventually(read, 60)
    ends = [
        TopicPartition(topic, each.partition, consumer.get_watermark_offsets(each, timeout=30)[1])
        for each in partitions
    ]
    consumer.close()
    admin = AdminClient({"bootstrap.servers": servers})  # without a name it would be gone before it has the answer
    for deleted in admin.delete_records(ends).values():
        deleted.result(30)
    producer = Producer({"bootstrap.servers": servers})
    done = {}
    for before, record in found:
        [(_, after, name)] = change([before], names)
        value = msgspec.msgpack.encode([after[key] for key in ("request_id", "station_id", "accepted_at", "body")])
        producer.produce(topic, value, key=record.key(), headers=record.headers())
        done[after["request_id"]] = name
    producer.flush(30)
    return done


REWRITE = {"redis": in_redis, "postgres": in_postgres, "rabbitmq": in_rabbitmq, "kafka": in_kafka}
