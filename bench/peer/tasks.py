"""The worker of the peer: decides by the access list, writes one row, and posts the signed callback.

An ordinary Celery application with what Celery's guide to optimizing advises for many short tasks: it takes tasks well
ahead, keeps no results, and each process keeps its connections. A task is acknowledged when it has ended, so that a
killed worker loses none.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from pathlib import Path

import psycopg
import requests
from celery import Celery
from celery.signals import worker_process_init

app = Celery("peer", broker=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)
SECRET = base64.b64decode(os.environ["PEER_SECRET"].removeprefix("whsec_"))
TIMEOUT_S = 10
INSERT = """
INSERT INTO requests (request_id, station_id, driver_token_hash, status, created_at, processed_at)
VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (request_id) DO NOTHING
"""


class Process:
    """What each process of the worker keeps."""

    allowed: frozenset[str]
    database: psycopg.Connection
    session: requests.Session


@worker_process_init.connect
def open_process(**_: object) -> None:
    """Read the access list and connect."""
    Process.allowed = frozenset(Path(os.environ["PEER_DRIVERS"]).read_text().split()[1:])
    Process.database = psycopg.connect(os.environ["PEER_DATABASE_URL"], autocommit=True)
    Process.session = requests.Session()


def signature(request_id: str, timestamp: str, body: bytes) -> str:
    """As Standard Webhooks has it."""
    signed = b".".join((request_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()


@app.task(autoretry_for=(requests.RequestException,), max_retries=2, retry_backoff=True)
def authorize(request_id: str, station_id: str, driver_token: str, callback_url: str, created_at: float) -> None:
    """Decide, record, call back."""
    status = "allowed" if driver_token in Process.allowed else "not_allowed"
    token_hash = hashlib.sha256(driver_token.encode()).hexdigest()[:16]
    Process.database.execute(INSERT, (request_id, station_id, token_hash, status, created_at, time.time()))
    body = json.dumps({"station_id": station_id, "driver_token": driver_token, "status": status}).encode()
    timestamp = str(int(time.time()))
    headers = {
        "content-type": "application/json",
        "webhook-id": request_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(request_id, timestamp, body),
    }
    answer = Process.session.post(callback_url, data=body, headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
    answer.raise_for_status()
