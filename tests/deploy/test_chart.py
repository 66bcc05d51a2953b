"""The Helm chart, rendered by the real Helm, for its default values and for each file in `ci/`."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

import chargegate
from certificates import Authority
from chargegate.config import SECRET_KEYS, URL_KEYS
from deploy.custom_resources import SCHEMAS
from outside import eventually
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.servers  # Helm is provisioned together with the servers

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "chargegate"
FILES = ["default", *sorted(path.name for path in (CHART / "ci").glob("*.yaml"))]
CHARGEGATE = str(Path(sys.executable).with_name("chargegate"))
KUBERNETES = ("1.30", "1.37")  # the oldest that the chart promises, and the newest whose schemas are here
KEY = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
SECRETS = {
    "security.api_keys": "desk:client:sha256:" + "0" * 64,
    "security.encryption_keys": KEY,
    "security.token_hash_key": KEY,
    "callback.signing_secrets": f"whsec_{KEY}",
    "queue.url": "redis://:p%40ss@redis/0",
    "database.url": "postgresql://gate:p%40ss@postgres/gate",
    "cache.url": "redis://:p%40ss@cache/0",
}


class Pod(NamedTuple):
    """A template of pods, and of what kind of object."""

    kind: str
    name: str
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        return container

    @property
    def environment(self) -> dict[str, str]:
        names = [entry["name"] for entry in self.container["env"]]
        assert len(names) == len(set(names)), "a variable is set twice"
        return {entry["name"]: entry["value"] for entry in self.container["env"]}


@cache
def template(helm: str, values: str, *options: str) -> tuple[int, str, str]:
    given = [] if values == "default" else ["-f", str(CHART / "ci" / values)]
    done = subprocess.run(
        [helm, "template", "release", str(CHART), "--namespace", "charging", *given, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def render(helm: str, values: str, *options: str) -> list[dict[str, Any]]:
    code, out, err = template(helm, values, *options)
    assert code == 0, err
    return [document for document in yaml.safe_load_all(out) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[dict[str, Any]]) -> Iterator[Pod]:
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield Pod(document["kind"], document["metadata"]["name"], spec["template"]["spec"])


def environment(pod: Pod, folder: Path) -> dict[str, str]:
    """The container's environment, with its files in a folder, as the kubelet lays them: links into a hidden folder."""
    secrets, tls = folder / "secrets", folder / "tls"
    for place, files in ((secrets, SECRETS), (tls, {})):
        (place / "..2026").mkdir(parents=True)
        (place / "..data").symlink_to("..2026")
        for name, text in files.items():
            (place / "..2026" / name).write_text(text + "\n")
            (place / name).symlink_to(f"..data/{name}")
    files = Authority(tls, "authority").sign("own")
    shutil.copy(files.certificate, tls / "tls.crt")
    shutil.copy(files.key, tls / "tls.key")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
    moved = {
        name: value.replace("/etc/chargegate", str(folder)).replace("/data/", f"{folder}/data/")
        for name, value in pod.environment.items()
    }
    # Kubernetes itself would add such variables beside a Service of that name, if `enableServiceLinks` were left on.
    links = {"CHARGEGATE_PORT": "tcp://10.0.0.1:80", "CHARGEGATE_SERVICE_HOST": "10.0.0.1"}
    return inherited | links | moved


@pytest.mark.parametrize("values", FILES)
def test_lint_is_clean(helm: str, values: str) -> None:
    given = [] if values == "default" else ["-f", str(CHART / "ci" / values)]
    done = subprocess.run(
        [helm, "lint", "--strict", str(CHART), *given], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr)


@pytest.mark.parametrize("values", FILES)
def test_every_object_fits_its_schema(helm: str, values: str) -> None:
    # Here, because it takes four seconds of processor time, and each worker of pytest-xdist imports each file.
    import jsonschema
    import kubernetes_validate

    documents = render(helm, values)
    assert len(documents) >= 5
    for document in documents:
        if (schema := SCHEMAS.get(document["kind"])) is not None:
            jsonschema.Draft202012Validator(schema).validate(document)
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in documents]
    assert len(names) == len(set(names))


def test_an_object_that_is_wrong_does_not_fit(helm: str) -> None:
    import jsonschema
    import kubernetes_validate

    (service,) = of_kind(render(helm, "default"), "Service")
    service["spec"]["ports"][0]["port"] = "eighty"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES[-1], strict=True)
    (monitor,) = of_kind(render(helm, "kafka-values.yaml"), "ServiceMonitor")
    monitor["spec"]["endpoint"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMAS["ServiceMonitor"]).validate(monitor)


def test_each_kind_of_object_is_rendered_by_some_file(helm: str) -> None:
    kinds = {document["kind"] for values in FILES for document in render(helm, values)}
    assert kinds == {
        "ConfigMap",
        "CronJob",
        "Deployment",
        "HTTPRoute",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "PrometheusRule",
        "ScaledObject",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
        "StorageClass",
        "VerticalPodAutoscaler",
    }


@pytest.mark.parametrize("values", FILES)
def test_the_environment_is_one_that_the_service_takes(helm: str, values: str, tmp_path: Path) -> None:
    checked = set()
    for pod in pods(render(helm, values)):
        if str(pod.environment) in checked:
            continue
        checked.add(str(pod.environment))
        folder = tmp_path / pod.name
        done = subprocess.run(
            [CHARGEGATE, "config", "check"],
            cwd=tmp_path,
            env=environment(pod, folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert checked


@pytest.mark.parametrize("values", FILES)
def test_pods_may_do_little(helm: str, values: str) -> None:
    found = list(pods(render(helm, values)))
    assert found
    for pod in found:
        assert pod.spec["enableServiceLinks"] is False
        assert pod.spec["automountServiceAccountToken"] is False
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["fsGroupChangePolicy"] == "OnRootMismatch"
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= pod.container["resources"]["requests"].keys()
        assert "memory" in pod.container["resources"]["limits"]
        mounted = {mount["name"] for mount in pod.container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod.spec["volumes"]}


@pytest.mark.parametrize("values", FILES)
def test_secrets_are_references(helm: str, values: str) -> None:
    _, out, _ = template(helm, values)
    assert not of_kind(render(helm, values), "Secret")
    assert not re.search(r"://[^/\s]*:[^/\s]+@", out)
    for pod in pods(render(helm, values)):
        for name, value in pod.environment.items():
            if re.search("API_KEYS|ENCRYPTION_KEYS|HASH_KEY|SIGNING", name):
                assert name.endswith("_FILE")
                assert value.startswith("/etc/chargegate/secrets/")


@pytest.mark.parametrize("values", FILES)
def test_services_are_probed_and_given_time_to_end(helm: str, values: str) -> None:
    services = [pod for pod in pods(render(helm, values)) if pod.kind != "CronJob"]
    assert services
    for pod in services:
        grace_ms = int(pod.environment.get("CHARGEGATE_SERVER__SHUTDOWN_GRACE_MS", 30_000))
        pause = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause >= 1
        assert pod.spec["terminationGracePeriodSeconds"] * 1000 > pause * 1000 + grace_ms
        (port,) = pod.container["ports"]
        for probe, path in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            asked = pod.container[probe]["httpGet"]
            assert asked["path"] == f"/health/{path}"
            assert asked["port"] == port["name"]
            tls = "CHARGEGATE_SERVER__TLS_CERTIFICATE" in pod.environment and pod.container["args"] != ["worker"]
            assert asked["scheme"] == ("HTTPS" if tls else "HTTP")
        kind = "WORKER" if pod.container["args"] == ["worker"] else "SERVER"
        assert port["containerPort"] == int(pod.environment[f"CHARGEGATE_{kind}__PORT"])


@pytest.mark.parametrize("values", FILES)
def test_what_selects_pods_finds_them(helm: str, values: str) -> None:
    documents = render(helm, values)
    labels = [
        document["spec"]["template"]["metadata"]["labels"]
        for document in documents
        if document["kind"] in ("Deployment", "StatefulSet")
    ]
    for document in documents:
        spec = document.get("spec", {})
        selector = {
            "Service": lambda spec=spec: spec["selector"],
            "PodDisruptionBudget": lambda spec=spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec=spec: spec["selector"]["matchLabels"],
            "StatefulSet": lambda spec=spec: spec["selector"]["matchLabels"],
        }.get(document["kind"], lambda: None)()
        if selector is not None:
            assert sum(selector.items() <= each.items() for each in labels) == 1, document
    for monitor in of_kind(documents, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        chosen = [
            each for each in of_kind(documents, "Service") if selector.items() <= each["metadata"]["labels"].items()
        ]
        ports = {port["name"] for each in chosen for port in each["spec"]["ports"]}
        assert ports == {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        assert {each["metadata"]["labels"][monitor["spec"]["jobLabel"]] for each in chosen} == {"chargegate"}


def test_the_rules_and_dashboards_are_those_of_the_repository(helm: str) -> None:
    documents = render(helm, "kafka-values.yaml")
    (rules,) = of_kind(documents, "PrometheusRule")
    text = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()
    runbook = "https://wiki.example.org/chargegate/runbook"
    assert rules["spec"] == yaml.safe_load(text.replace("docs/runbook.md", runbook))
    (dashboards,) = of_kind(documents, "ConfigMap")
    kept = {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana").glob("*.json")}
    assert kept
    assert {name: text.strip() for name, text in dashboards["data"].items()} == {
        name: text.strip() for name, text in kept.items()
    }


def test_it_is_the_chart_of_this_release() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chargegate.__version__


def test_the_jobs_of_the_audit_are_commands(helm: str) -> None:
    jobs = [pod for values in FILES for pod in pods(render(helm, values)) if pod.kind == "CronJob"]
    assert jobs
    for command in {tuple(pod.container["args"]) for pod in jobs}:
        done = subprocess.run([CHARGEGATE, *command[:2], "--help"], capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, command
    for pod in jobs:
        volume = next(volume for volume in pod.spec["volumes"] if volume["name"] == "data")
        if "persistentVolumeClaim" in volume:
            assert "podAffinity" in pod.spec["affinity"]


LONG = "a-release-whose-name-is-as-long-as-helm-lets-it-be-53"


@pytest.mark.parametrize("values", FILES)
def test_no_name_is_longer_than_kubernetes_takes(helm: str, values: str) -> None:
    """Of 52 characters at most is the name of a CronJob (it gets 11 more for each Job), of 63 that of a Service and of
    each label."""
    job = "auditJobs.weekly-verifies"
    given = ["--set", f"{job}.enabled=true,{job}.schedule=0 0 * * 0,{job}.args={{audit,verify}}"]
    if values != "default":
        given += ["-f", str(CHART / "ci" / values)]
    done = subprocess.run(
        [helm, "template", LONG, str(CHART), *given], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert of_kind(documents, "CronJob")
    for document in documents:
        most = 52 if document["kind"] == "CronJob" else 63
        name = document["metadata"]["name"]
        assert len(name) <= most, (document["kind"], name)
        for value in document["metadata"].get("labels", {}).values():
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", value), value


@pytest.mark.parametrize("name", ["ends-with-", "Upper", "with_line", "of-sixteen-chars"])
def test_a_job_whose_name_kubernetes_would_refuse_is_refused(helm: str, name: str) -> None:
    code, _, err = template(
        helm,
        "default",
        "--set-json",
        f'auditJobs={{"{name}": {{"enabled": false, "schedule": "@daily", "args": ["audit"]}}}}',
    )
    assert code != 0
    assert name in err


def by_role(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["labels"]["app.kubernetes.io/component"]: document["spec"]
        for document in of_kind(documents, kind)
    }


@pytest.mark.parametrize("values", FILES)
def test_pods_reach_name_servers_their_servers_and_public_receivers_alone(helm: str, values: str) -> None:
    documents = render(helm, values)
    policies = by_role(documents, "NetworkPolicy")
    if not policies:
        assert values == "rabbitmq-values.yaml"
        return
    jobs = {name for name in policies if name.startswith("audit-")}
    assert len(jobs) == len(of_kind(documents, "CronJob"))
    own = [ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd00:20::/32")]
    for role, policy in policies.items():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert {"port": 53, "protocol": "UDP"} in policy["egress"][0]["ports"]
        blocks = [peer["ipBlock"] for rule in policy["egress"] for peer in rule.get("to", []) if "ipBlock" in peer]
        receivers = [block for block in blocks if block["cidr"] != "10.0.5.0/24"]
        anybody = [block for block in receivers if ipaddress.ip_network(block["cidr"]) not in own]
        if role in jobs or role == "api":
            assert receivers == []
            continue
        for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.1.1", "::1", "fd00::1"):
            assert not any(holds(block, address) for block in anybody)
        for address in ("93.184.215.14", "2606:2800:21f::1"):
            assert any(holds(block, address) for block in receivers)
        assert any(holds(block, "10.20.1.2") for block in receivers) == (values == "postgres-values.yaml")


def holds(block: dict[str, Any], address: str) -> bool:
    place = ipaddress.ip_address(address)
    inside = place in ipaddress.ip_network(block["cidr"])
    return inside and not any(place in ipaddress.ip_network(each) for each in block.get("except", []))


def test_workers_are_scaled_by_processor_time_and_by_the_queue(helm: str) -> None:
    hpa = by_role(render(helm, "redis-values.yaml"), "HorizontalPodAutoscaler")
    assert {role: [metric["type"] for metric in spec["metrics"]] for role, spec in hpa.items()} == {
        "api": ["Resource"], "worker": ["Resource", "External"],
    }  # fmt: skip
    keda = by_role(render(helm, "kafka-values.yaml"), "ScaledObject")
    assert {role: [trigger["type"] for trigger in spec["triggers"]] for role, spec in keda.items()} == {
        "api": ["cpu"], "worker": ["cpu", "prometheus"],
    }  # fmt: skip
    [query] = [each["metadata"]["query"] for each in keda["worker"]["triggers"] if each["type"] == "prometheus"]
    assert query.startswith("max(queue_depth{")
    for role in ("api", "worker"):
        for documents in (render(helm, "redis-values.yaml"), render(helm, "kafka-values.yaml")):
            [deployment] = [each for name, each in by_role(documents, "Deployment").items() if name == role]
            assert "replicas" not in deployment, "a release would undo what the autoscaler did"


def test_the_vertical_autoscaler_only_recommends(helm: str) -> None:
    for values, roles in (("kafka-values.yaml", {"api", "worker"}), ("tls-values.yaml", {"serve"})):
        found = by_role(render(helm, values), "VerticalPodAutoscaler")
        assert found.keys() == roles
        assert all(spec["updatePolicy"] == {"updateMode": "Off"} for spec in found.values())


def test_only_the_api_is_seen_from_outside(helm: str) -> None:
    [ingress] = of_kind(render(helm, "kafka-values.yaml"), "Ingress")
    paths = [path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert paths == ["/api"]
    [route] = of_kind(render(helm, "rabbitmq-values.yaml"), "HTTPRoute")
    matched = [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    assert matched == ["/api", "/docs"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("config.queue.url=kafka://user:secret@kafka:9092/t", "queue"),
        ("config.security.encryption_keys[0]=AAAA", "encryption_keys"),
        ("config.server.port=9000", "port"),
        ("config.server.tls_certificate=/x", "tls_certificate"),
        ("config.data_dir=/x", "data_dir"),
        ("mode=cluster", "mode"),
        ("mode=distributed", "queue.url"),
        ("nameOverride=Gate", "nameOverride"),
        ("fullnameOverride=gate_1", "fullnameOverride"),
        ("api.replica=3", "replica"),
        ("worker.autoscaling.kind=vpa", "kind"),
        ("image.digest=latest", "digest"),
        ("secrets.keys.security\\.api_keys=null", "access keys are needed"),
        ("ingress.enabled=true", "ingress.hosts"),
        ("gateway.enabled=true", "gateway.parentRefs"),
        ("tls.secretName=x,serviceMonitor.enabled=true", "serviceMonitor.tlsConfig"),
        (
            "auditJobs.verify.enabled=true,serve.persistence.accessModes[0]=ReadWriteOncePod",
            "auditJobs.verify cannot mount",
        ),
        ("storageClass.create=true", "storageClass.provisioner"),
        ("secrets.keys.database\\.url=url,config.database.url=sqlite", "both"),
    ],
)
def test_values_that_are_wrong_are_refused(helm: str, option: str, why: str) -> None:
    code, _, err = template(helm, "default", "--set", option)
    assert code != 0
    assert why in err


BAD_URLS = (
    "postgresql://gate:p4ss@db/gate",
    "redis://:p4ss@db/0",
    "https://gate@db/x",
    "postgresql://db/gate?user=gate&password=p4ss",
    "postgresql://db/gate?PassWord=p4ss",
    "postgresql://db/gate?p%61ssword=p4ss",
    "kafka://db:9092/t?sasl.username=gate&sasl.password=p4ss",
    "kafka://db:9092/t?sasl_oauthbearer_config=p4ss",
    "postgresql://pooler/gate?listen_url=postgresql://gate:p4ss@db/gate",
    "https://db/hook?access_token=p4ss",
    "s3://bucket/x?endpoint=https://gate:p4ss@db",
    "s3://bucket/x?endpoint=https%3A%2F%2Fgate%3Ap4ss%40db",
    "amqps://gate:p4ss@db/%2F",
    "http://gate:p4/s?s@db",
)


def with_every_url(url: str) -> list[str]:
    """Options of Helm that set each URL among the settings to this one."""
    text = url.replace(",", r"\,")
    return [word for key in sorted(URL_KEYS) for word in ("--set-string", f"config.{key}={text}")]


@pytest.mark.parametrize("url", BAD_URLS)
def test_no_url_with_a_user_or_a_password_is_taken(helm: str, url: str) -> None:
    code, out, err = template(helm, "default", *with_every_url(url))
    assert code != 0
    assert "p4ss" not in out
    for key in URL_KEYS:
        assert f"/config/{key.replace('.', '/')}'" in err


def test_urls_without_a_secret_are_taken(helm: str) -> None:
    url = "https://db-1.example:8443,db-2.example/x?sslmode=verify-full&client.id=gate"
    (pod,) = pods(render(helm, "default", *with_every_url(url)))
    for key in URL_KEYS:
        assert pod.environment[f"CHARGEGATE_{key.upper().replace('.', '__')}"] == url


@pytest.mark.parametrize("value", ["worker.autoscaling.prometheusAddress", "prometheusRule.runbook"])
def test_no_other_address_with_a_password_is_taken(helm: str, value: str) -> None:
    code, _, err = template(helm, "default", "--set-string", f"{value}=https://gate:p4ss@monitor")
    assert code != 0
    assert value.rpartition(".")[2] in err


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("config.nonsense.key=1", "nonsense"),
        ("config.queue.nonsense=1", "nonsense"),
        ("config.authorization.circuit_breaker.nonsense=1", "nonsense"),
        ("config.queue.max_size=abc", "max_size"),
        ("config.queue.max_size=0", "max_size"),
        ("config.queue.max_size=1.5", "max_size"),
        ("config.queue=sqlite", "queue"),
        ("config.callback.require_https=1", "require_https"),
        ("config.callback.allowed_networks=10.0.0.0/8", "allowed_networks"),
        ("config.authorization.backend=ldap", "backend"),
        ("config.authorization.simulated_latency_ms={1}", "simulated_latency_ms"),
        ("config.tracing.sample_ratio=2", "sample_ratio"),
        ("config.audit.influx_token=x", "influx_token"),
        ("config.worker.port=1", "worker"),
        ("secrets.keys.queue\\.max_size=size", "queue.max_size"),
        ("secrets.keys.security\\.api_key=keys", "security.api_key"),
    ],
)
def test_a_setting_that_the_service_would_refuse_is_refused(helm: str, option: str, why: str) -> None:
    code, _, err = template(helm, "default", "--set", option)
    assert code != 0
    assert why in err


def every_key(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from every_key(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_setting_with_its_default_is_taken(helm: str, tmp_path: Path) -> None:
    """But those that are secrets, and those that the chart sets itself."""
    shown = subprocess.run(
        [CHARGEGATE, "config", "show", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    config = json.loads(shown.stdout)
    refused = {"data_dir", "worker.host", "worker.port", "server.host", "server.port", "server.tls_certificate"}
    refused |= {"server.tls_key", "server.tls_client_ca", *SECRET_KEYS}
    for key in refused:
        *sections, name = key.split(".")
        section = config
        for each in sections:
            section = section[each]
        del section[name]
    del config["worker"]
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps({"config": config}))
    (pod,) = pods(render(helm, "default", "-f", str(values)))
    for key, _ in every_key(config):
        assert f"CHARGEGATE_{key.upper().replace('.', '__')}" in pod.environment


def test_the_schema_of_the_settings_is_current() -> None:
    done = subprocess.run(
        [sys.executable, CHART.parent / "values_schema.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_empty_text_and_false_are_values(helm: str) -> None:
    option = "config.audit.csv_path=,config.monitoring.metrics.enabled=false,config.database.retention_ms=63072000000"
    (pod,) = pods(render(helm, "default", "--set", option))
    assert pod.environment["CHARGEGATE_AUDIT__CSV_PATH"] == ""
    assert pod.environment["CHARGEGATE_MONITORING__METRICS__ENABLED"] == "false"
    assert pod.environment["CHARGEGATE_DATABASE__RETENTION_MS"] == "63072000000"


def test_a_larger_claim_is_a_change_of_the_claim_only(helm: str) -> None:
    before, after = (render(helm, "default", "--set", f"serve.persistence.size={size}") for size in ("10Gi", "20Gi"))
    changed = [one["kind"] for one, other in zip(before, after, strict=True) if one != other]
    assert changed == ["PersistentVolumeClaim"]


def test_the_service_starts_on_a_volume_as_kubernetes_lays_it(helm: str, tmp_path: Path) -> None:
    """The folder of a volume with `fsGroup` belongs to root, and its group may write."""
    (pod,) = pods(render(helm, "default"))
    variables = environment(pod, tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o2775)
    variables["CHARGEGATE_SERVER__PORT"] = str(free_port())
    url = f"http://127.0.0.1:{variables['CHARGEGATE_SERVER__PORT']}{pod.container['readinessProbe']['httpGet']['path']}"

    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
        return False

    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([CHARGEGATE, *pod.container["args"]], cwd=tmp_path, env=variables, stderr=out)
    try:
        eventually(lambda: process.poll() is not None or ready(), 60)
        assert process.poll() is None, log.read_text()
        assert (tmp_path / "data" / "authorization_audit.log").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
