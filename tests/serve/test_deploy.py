"""The examples in deploy/kubernetes and deploy/compose, against their schemas and the server.

No cluster and no engine of containers runs them here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from edgewright.serve import cli
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import LAST_S, LAST_WORDS_S
from edgewright.serve.store_url import StoreUrl
from edgewright.serve.token_cli import token
from edgewright.serve.tokens import Right, read_tokens

from .conftest import Launch

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes" / "edgewright.yaml"
MONITOR = DEPLOY / "kubernetes" / "monitor.yaml"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
VERSIONS = ("1.29", kubernetes_validate.latest_version())
IMAGE = (
    "edgewright-serve:" + tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
)
JOB = "edgewright"
FEEDBACK = "postgresql://edgewright:secret@postgres/edgewright"


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def the(kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects() if each["kind"] == kind)
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    found: dict[str, Any] = the("Deployment")["spec"]["template"]["spec"]
    return found


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


@pytest.fixture
def server(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]["server"]
    return found


def image() -> dict[str, str]:
    """The variables that Dockerfile.serve sets for the server."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile.serve").read_text())
    lines = [line.removeprefix("ENV ") for line in text.splitlines() if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for pair in lines[-1].split())


def user() -> str:
    (found,) = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile.serve").read_text(), re.M)
    return str(found)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command makes of the arguments of a container, in the image's environment."""
    taken: list[ServeConfig] = []

    async def serve(config: ServeConfig, *_: object) -> bool:
        taken.append(config)
        return True

    monkeypatch.setattr(cli, "serve_repository", serve)

    def parse(arguments: list[str], variables: Mapping[str, str]) -> ServeConfig:
        assert arguments[0] == "serve"
        env = {**image(), **variables}
        done = CliRunner().invoke(cli.serve, arguments[1:], env=env)
        assert done.exit_code == 0, done.output
        return taken.pop()

    return parse


@pytest.fixture
def deployed(configured: Any, container: dict[str, Any]) -> ServeConfig:
    found: ServeConfig = configured(container["args"], {"EDGEWRIGHT_FEEDBACK": FEEDBACK})
    return found


@pytest.fixture
def composed(configured: Any, server: dict[str, Any]) -> ServeConfig:
    variables = {
        name: value.replace("${POSTGRES_PASSWORD:?}", "secret")
        for name, value in server["environment"].items()
    }
    found: ServeConfig = configured(server["command"], variables)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(version: str) -> None:
    assert [each["kind"] for each in objects()] == ["Deployment", "Service", "PodDisruptionBudget"]
    for each in objects():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_compose_file_is_one(compose: dict[str, Any]) -> None:
    check = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    done = subprocess.run([sys.executable, *check], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ports_and_probes_are_the_servers(
    container: dict[str, Any], deployed: ServeConfig, launch: Launch
) -> None:
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"grpc": deployed.port, "http": deployed.metrics_port}
    assert deployed.tls is not None
    port = launch().server.metrics_port
    for probe, path in {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }.items():
        asked = container[f"{probe}Probe"]["httpGet"]
        assert asked == {"path": path, "port": "http", "scheme": "HTTPS"}
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            assert answer.status == 200


def test_a_start_may_take_as_long_as_measuring_does(
    container: dict[str, Any], deployed: ServeConfig
) -> None:
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 3 * deployed.remeasure_seconds


def test_the_service_is_headless_and_leads_to_the_pods() -> None:
    deployment, service = the("Deployment"), the("Service")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["spec"]["clusterIP"] == "None"
    numbers = {each["name"]: each["containerPort"] for each in container["ports"]}
    for port in service["spec"]["ports"]:
        # What is headless forwards nothing: clients come to the pod's own port.
        assert port["port"] == numbers[port["targetPort"]]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        service["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] < deployment["spec"]["replicas"]


def test_who_ends_the_server_waits_for_its_drain(
    pod: dict[str, Any], deployed: ServeConfig, server: dict[str, Any], composed: ServeConfig
) -> None:
    stops = int(server["stop_grace_period"].removesuffix("s"))
    for config, waits_s in ((deployed, pod["terminationGracePeriodSeconds"]), (composed, stops)):
        assert config.drain_delay_s + config.grace_s + LAST_S + LAST_WORDS_S < waits_s
    assert deployed.drain_delay_s >= 5  # until every node has heard that the pod is leaving


def test_clients_come_to_know_new_replicas(deployed: ServeConfig) -> None:
    assert deployed.max_connection_age_s is not None


def test_whatever_the_server_reads_is_mounted_and_it_writes_only_where_it_may(
    pod: dict[str, Any], container: dict[str, Any], deployed: ServeConfig
) -> None:
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in mounts.values()} == volumes.keys()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert deployed.tls is not None
    for path, keys in {
        deployed.tls_cert: {"tls.crt", "tls.key"},  # of every secret that is a kubernetes.io/tls
        deployed.tls_key: {"tls.crt", "tls.key"},
        deployed.tokens: {"tokens.txt"},
    }.items():
        assert path is not None
        mount = mounts[str(path.parent)]
        assert mount["readOnly"] is True
        assert "secretName" in volumes[mount["name"]]["secret"]
        assert path.name in keys
    assert mounts[str(deployed.repository)]["readOnly"] is True
    state = mounts[str(deployed.state_dir)]
    assert not state.get("readOnly")
    assert volumes[state["name"]]["emptyDir"] == {}


def test_secrets_are_made_by_the_commands_that_the_file_names(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    told = re.sub(r"\\\n#\s+", "", KUBERNETES.read_text())
    made = dict(re.findall(r"create secret (?:tls|generic) (\S+) (.*)", told))
    (variable,) = container["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    mounted = {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    assert made.keys() == mounted | {reference["name"]}
    assert variable["name"] == "EDGEWRIGHT_FEEDBACK"
    assert f"--from-literal {reference['key']}=" in made[reference["name"]]


def test_the_process_is_the_images_user_and_has_no_rights(
    pod: dict[str, Any], container: dict[str, Any], server: dict[str, Any]
) -> None:
    context = pod["securityContext"]
    assert user() == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["runAsNonRoot"] is True
    assert context["fsGroup"] == context["runAsGroup"]
    limits = container["securityContext"]
    assert limits["capabilities"] == {"drop": ["ALL"]}
    assert limits["allowPrivilegeEscalation"] is False
    assert pod["automountServiceAccountToken"] is False
    assert server["cap_drop"] == ["ALL"]
    assert server["read_only"] is True
    for image_of in (container, server):
        assert image_of["image"] == IMAGE


def test_the_limit_is_of_whole_cores(container: dict[str, Any], server: dict[str, Any]) -> None:
    """What is not whole no thread computes in."""
    assert container["resources"]["limits"]["cpu"].isdecimal()
    assert server["cpus"] == int(server["cpus"])


def test_the_monitor_scrapes_every_pod_as_the_job_of_the_alerts() -> None:
    monitor = yaml.safe_load(MONITOR.read_text())
    service = the("Service")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == JOB
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    assert (endpoint["path"], endpoint["scheme"]) == ("/metrics", "https")
    alerts = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {JOB}
    assert f"--rights {Right.METRICS}" in MONITOR.read_text()


def commands(file: Path) -> list[str]:
    """What the comment at the top of a file would have its reader run, one line each."""
    told = re.sub(r"\\\n#\s+", "", file.read_text())
    return re.findall(r"^#   (\S.*)$", told, re.M)


def run_with_kubectl(command: str, folder: Path, cwd: Path) -> str:
    """What kubectl is given to apply; it is a stand-in."""
    folder.mkdir()
    kubectl = folder / "kubectl"
    kubectl.write_text('#!/bin/sh\nif [ "$1" = apply ]; then cat; else echo "$@"; fi\n')
    kubectl.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_alerts_become_a_rule_by_the_monitors_command(tmp_path: Path) -> None:
    (command,) = (each for each in commands(MONITOR) if "alerts.yaml" in each)
    rule = yaml.safe_load(run_with_kubectl(command, tmp_path / "bin", ROOT))
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    monitor = yaml.safe_load(MONITOR.read_text())
    assert rule["metadata"]["labels"]["release"] == monitor["metadata"]["labels"]["release"]


def test_the_monitors_token_is_made_given_to_prometheus_and_told_to_the_server(
    pod: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, tell, give, *_ = commands(MONITOR)
    words = shlex.split(make)
    assert words[:2] == ["edgewright", "token"]
    assert CliRunner().invoke(token, words[2:]).exit_code == 0
    file = tmp_path / "tokens.txt"
    secret = (tmp_path / "prometheus.token").read_text().strip()
    known = read_tokens(file, file.read_bytes()).find(secret)
    assert known is not None
    assert known.rights == {Right.METRICS}
    applied = run_with_kubectl(tell, tmp_path / "first", tmp_path).split()
    mounted = {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    assert applied[3] in mounted
    assert applied[4:6] == ["--from-file", "tokens.txt"]
    (endpoint,) = yaml.safe_load(MONITOR.read_text())["spec"]["endpoints"]
    credentials = endpoint["authorization"]["credentials"]
    given = run_with_kubectl(give, tmp_path / "second", tmp_path).split()
    assert given[3] == credentials["name"] == endpoint["tlsConfig"]["ca"]["secret"]["name"]
    assert f"{credentials['key']}={secret}" in given
    assert endpoint["tlsConfig"]["ca"]["secret"]["key"] in given


def test_the_claim_is_for_pods_of_several_nodes(pod: dict[str, Any]) -> None:
    shown = re.search(r"^#   apiVersion: v1\n(?:#   .*\n)+", KUBERNETES.read_text(), re.M)
    assert shown is not None
    claim = yaml.safe_load(re.sub(r"^#   ", "", shown[0], flags=re.M))
    for version in VERSIONS:
        kubernetes_validate.validate(claim, version, strict=True)
    (used,) = (each for each in pod["volumes"] if "persistentVolumeClaim" in each)
    assert claim["metadata"]["name"] == used["persistentVolumeClaim"]["claimName"]
    assert set(claim["spec"]["accessModes"]) <= {"ReadWriteMany", "ReadOnlyMany"}


def test_replicas_are_spread_over_nodes_and_zones(pod: dict[str, Any]) -> None:
    spread = {each["topologyKey"]: each for each in pod["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    labels = the("Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in spread.values():
        assert each["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_database_is_ready_only_by_the_way_that_the_server_takes(
    compose: dict[str, Any],
) -> None:
    assert "--host=127.0.0.1" in compose["services"]["postgres"]["healthcheck"]["test"]


@pytest.mark.parametrize("file", [KUBERNETES, COMPOSE], ids=["kubernetes", "compose"])
def test_the_files_name_the_test_that_checks_them(file: Path) -> None:
    (named,) = re.findall(r"tests/\S+\.py", file.read_text())
    assert ROOT / named == Path(__file__)


def test_composes_server_is_reached_as_configured(
    composed: ServeConfig, server: dict[str, Any], compose: dict[str, Any]
) -> None:
    published = {int(each.rpartition(":")[2]) for each in server["ports"]}
    assert published == {composed.port, composed.metrics_port}
    assert composed.feedback is not None
    url = StoreUrl.parse(composed.feedback).url
    store = compose["services"][url.host]
    assert url.username == store["environment"]["POSTGRES_USER"]
    assert url.database == store["environment"]["POSTGRES_DB"]
    assert url.host in server["depends_on"]
    targets = {target.split(":")[1] for target in mounts(server)}
    assert {str(composed.repository), str(composed.state_dir)} <= targets


def mounts(service: Mapping[str, Any]) -> list[str]:
    """Without variables: source:target[:mode]."""
    return [re.sub(r"\$\{[^}]*\}", "/set", each) for each in service.get("volumes", [])]


def files(compose: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What of this repository is mounted, and where."""
    for service in compose["services"].values():
        for source, target, *_ in (each.split(":") for each in mounts(service)):
            if source.startswith("."):
                yield (COMPOSE.parent / source).resolve(), target


def test_compose_mounts_files_that_are_here_and_volumes_that_it_names(
    compose: dict[str, Any],
) -> None:
    assert len(list(files(compose))) == 5
    for file, _ in files(compose):
        assert file.is_file(), file
    named = {
        source
        for service in compose["services"].values()
        for source in (each.split(":")[0] for each in mounts(service))
        if source[0] not in "./"
    }
    assert named == compose["volumes"].keys()


def test_composes_prometheus_scrapes_the_server_and_has_the_alerts(
    compose: dict[str, Any], composed: ServeConfig, tmp_path: Path
) -> None:
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == JOB
    assert job["static_configs"] == [{"targets": [f"server:{composed.metrics_port}"]}]
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; it comes with Prometheus")
    for file, target in files(compose):
        if target.startswith("/etc/prometheus/"):
            copy = tmp_path / Path(target).relative_to("/etc/prometheus")
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
    command = [promtool, "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rule files found" in done.stdout


def test_composes_grafana_finds_prometheus_and_the_dashboard(compose: dict[str, Any]) -> None:
    mounted = {Path(target): file for file, target in files(compose)}
    provisioning = Path("/etc/grafana/provisioning")
    read = {
        kind: yaml.safe_load(mounted[provisioning / kind / "edgewright.yaml"].read_text())
        for kind in ("datasources", "dashboards")
    }
    (source,) = read["datasources"]["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert port in {each.rpartition(":")[2] for each in compose["services"][host]["ports"]}
    assert source["isDefault"] is True
    (provider,) = read["dashboards"]["providers"]
    (dashboard,) = (file for target, file in mounted.items() if target.suffix == ".json")
    (target,) = (target for target in mounted if target.suffix == ".json")
    assert provider["options"]["path"] == str(target.parent)
    variables = json.loads(dashboard.read_text())["templating"]["list"]
    asked = {each["query"] for each in variables if each["type"] == "datasource"}
    assert asked == {source["type"]}
