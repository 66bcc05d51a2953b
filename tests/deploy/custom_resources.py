"""Schemas of the custom resources that the chart makes.

Kubernetes publishes no schema for them. These were written by hand from the documents of their projects, and hold only
the fields that the chart uses: an unknown field is an error.
"""

from __future__ import annotations

from typing import Any


def record(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
DURATION = {"type": "string", "pattern": r"^(\d+(ms|[smhd]))+$"}
METADATA = record("name labels", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
TARGET = record("kind name", apiVersion={"const": "apps/v1"}, kind={"enum": ["Deployment", "StatefulSet"]}, name=NAME)


def resource(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return record(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


_RULE = record(
    "expr",
    record=TEXT,
    alert=TEXT,
    expr=TEXT,
    labels=TEXTS,
    annotations=TEXTS,
    keep_firing_for=DURATION,
    **{"for": DURATION},
) | {"oneOf": [{"required": ["record"]}, {"required": ["alert"]}]}

_TRIGGER = record(
    "type metadata",
    type={"enum": ["cpu", "prometheus"]},
    metricType={"enum": ["Utilization", "AverageValue"]},
    metadata=TEXTS,  # KEDA takes nothing but texts
) | {
    "allOf": [
        {
            "if": {"properties": {"type": {"const": "prometheus"}}},
            "then": {"properties": {"metadata": {"required": ["serverAddress", "query", "threshold"]}}},
            "else": {"properties": {"metadata": {"required": ["value"]}}},
        }
    ]
}

SCHEMAS = {
    "ServiceMonitor": resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        record(
            "selector endpoints",
            jobLabel=TEXT,
            selector=record("matchLabels", matchLabels=TEXTS),
            namespaceSelector=record("matchNames", matchNames=listed(NAME)),
            endpoints=listed(
                record(
                    "port",
                    port=NAME,
                    path={"const": "/metrics"},
                    scheme={"enum": ["http", "https"]},
                    interval=DURATION,
                    tlsConfig={"type": "object", "minProperties": 1},
                )
            ),
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        record("groups", groups=listed(record("name rules", name=TEXT, interval=DURATION, rules=listed(_RULE)))),
    ),
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        record(
            "scaleTargetRef triggers",
            scaleTargetRef=TARGET,
            minReplicaCount=NUMBER,
            maxReplicaCount=NUMBER,
            cooldownPeriod=NUMBER,
            triggers=listed(_TRIGGER),
        ),
    ),
    "VerticalPodAutoscaler": resource(
        "autoscaling.k8s.io/v1",
        "VerticalPodAutoscaler",
        record(
            "targetRef updatePolicy", targetRef=TARGET, updatePolicy=record("updateMode", updateMode={"const": "Off"})
        ),
    ),
    "HTTPRoute": resource(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        record(
            "parentRefs rules",
            parentRefs=listed(record("name", name=TEXT, namespace=NAME, sectionName=NAME, port=NUMBER)),
            hostnames=listed(TEXT),
            rules=listed(
                record(
                    "matches backendRefs",
                    matches=listed(
                        record(
                            "path",
                            path=record(
                                "type value", type={"const": "PathPrefix"}, value={"type": "string", "pattern": "^/"}
                            ),
                        )
                    ),
                    backendRefs=listed(record("name port", name=NAME, port=NUMBER)),
                )
            ),
        ),
    ),
}
