"""The callback as clients see it: what they have to answer, and how."""

from typing import Final

from chargegate.api.routing import Body, Callback, header
from chargegate.api.schemas import EXAMPLE_STATION, EXAMPLE_TOKEN
from chargegate.model import Status

_SIGNATURE: Final = "v1,[A-Za-z0-9+/]{43}="

DECISION: Final = Callback(
    name="receiveDecision",
    url="{$request.body#/callback_url}",
    summary="The decision, sent to the client",
    description="For the client to implement; callback_url is where it listens, in either spelling. The answer counts"
    " only if it is complete in time, by default within 10 seconds. The same decision may arrive more than once: its"
    " webhook-id is then the same.",
    parameters=[
        header("webhook-id", "The request_id, the same on every attempt.", required=True),
        header("webhook-timestamp", "Unix seconds of this attempt.", "^[0-9]+$", required=True),
        header(
            "webhook-signature",
            "Only where signing secrets are configured: by the Standard Webhooks specification, one for each secret."
            " HMAC-SHA256 of webhook-id, webhook-timestamp and the body, joined by full stops.",
            f"^{_SIGNATURE}( {_SIGNATURE})*$",
        ),
        header("traceparent", "The one that the request came with, if any; with its tracestate, if it had one."),
    ],
    body=Body(
        "CallbackPayload",
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["station_id", "driver_token", "status"],
            "properties": {
                "station_id": {"type": "string", "description": "As it was sent."},
                "driver_token": {"type": "string", "description": "As it was sent."},
                "status": {"type": "string", "enum": [str(status) for status in Status]},
            },
        },
        {"station_id": EXAMPLE_STATION, "driver_token": EXAMPLE_TOKEN, "status": "allowed"},
    ),
    answers={
        "2XX": "Delivered. The body is thrown away.",
        "410": "Not wanted: it is not tried again, and is a dead letter.",
        "default": "Not delivered; redirects are not followed. It is tried again, by default 3 times in all, after"
        " growing waits, or after what Retry-After asks for up to a cap. Then it is a dead letter.",
    },
)
