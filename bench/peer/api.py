"""The API of the peer: validates a request, gives it to Celery, and answers 202."""

import time
import uuid
from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, Field, HttpUrl
from tasks import authorize

MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."
app = FastAPI()


class ChargingRequest(BaseModel):
    """What a client sends."""

    station_id: uuid.UUID
    driver_token: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{20,80}$")]
    callback_url: HttpUrl


class Accepted(BaseModel):
    """What a client is answered."""

    status: str = "accepted"
    message: str = MESSAGE
    request_id: uuid.UUID
    timestamp: float


@app.post("/api/v1/charging-session", status_code=202)
def accept(request: ChargingRequest) -> Accepted:
    """In a thread of the pool, because Celery's client blocks."""
    request_id, now = uuid.uuid4(), time.time()
    authorize.delay(str(request_id), str(request.station_id), request.driver_token, str(request.callback_url), now)
    return Accepted(request_id=request_id, timestamp=now)
