"""What the analysis of the audit found."""

from typing import Final

from starlette.responses import Response

from chargegate.api.parameters import ANOMALY_TYPE, OPEN, PAGING, respond_page
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Routes
from chargegate.api.schemas import page
from chargegate.ledger.anomalies import Anomaly
from chargegate.operations import anomalies
from chargegate.operations.views import view

route: Final = Routes("Anomalies", access="admin")


@route(
    "GET",
    "/api/v1/anomalies",
    "Anomalies of the audit, those that began last first",
    parameters=[ANOMALY_TYPE, OPEN, *PAGING],
    description="until is null while an anomaly lasts.",
    answers={200: Answer("A page of anomalies.", page("AnomalyPage", view("AnomalyItem", Anomaly)))},
)
async def list_anomalies(call: Call, parts: Parts) -> Response:
    return await respond_page(call, anomalies.anomalies(parts.anomalies, call[ANOMALY_TYPE], call[OPEN]))
