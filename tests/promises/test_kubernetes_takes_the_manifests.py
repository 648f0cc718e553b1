"""deploy/kubernetes: every manifest is one that the API server knows, safe by its own standard, and right for this program.

No cluster is asked: the schemas are those that Kubernetes publishes, and the program itself reads the configurations.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from actors import run_command
from aop_proxy.config import load_file
from aop_proxy.model import Settings
from benchmarks import sizing
from certificates import Authority

DIRECTORY = Path(__file__).parents[2] / "deploy/kubernetes"
OLDEST = "1.30"
"""The first that has `preStop.sleep` without a feature gate of one's own."""
FILES = {path.stem: list(yaml.safe_load_all(path.read_text())) for path in DIRECTORY.glob("*.yaml")}
MANIFESTS = [(name, manifest) for name, manifests in FILES.items() for manifest in manifests]
DEPLOYMENTS = {name: next(one for one in manifests if one["kind"] == "Deployment") for name, manifests in FILES.items()}
PODS = {name: deployment["spec"]["template"]["spec"] for name, deployment in DEPLOYMENTS.items()}
Manifest = dict[str, Any]


def of_kind(name: str, kind: str) -> Manifest:
    """The only manifest of a kind in a file."""
    (found,) = [manifest for manifest in FILES[name] if manifest["kind"] == kind]
    return dict(found)


def proxy_container(name: str) -> Manifest:
    (found,) = [container for container in PODS[name]["containers"] if container["name"] == "aop-proxy"]
    return dict(found)


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def configuration(name: str, tmp_path: Path, authority: Authority, server_authority: Authority) -> Path:
    """The file of the ConfigMap, its mounted files beside it."""
    text = of_kind(name, "ConfigMap")["data"]["proxy.yaml"]
    for mount in ("origin", "client-ca"):
        (tmp_path / mount).mkdir()
    written = server_authority.issue_server("example.com").write(tmp_path / "origin", "tls")
    written.certificate.rename(tmp_path / "origin/tls.crt")
    authority.write(tmp_path / "client-ca/ca.pem")
    path = tmp_path / "proxy.yaml"
    path.write_text(text.replace("/run/secrets", str(tmp_path)))
    return path


@pytest.fixture
def settings(configuration: Path) -> Settings:
    return load_file(str(configuration))


def test_there_is_a_sidecar_and_a_deployment() -> None:
    kinds = {name: sorted(manifest["kind"] for manifest in manifests) for name, manifests in FILES.items()}
    alone = ["ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service"]
    beside = ["ConfigMap", "Deployment", "PodDisruptionBudget", "Service"]
    assert kinds == {"deployment": alone, "sidecar": beside}
    assert len(PODS["sidecar"]["containers"]) == 2


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize(("file", "manifest"), MANIFESTS, ids=[f"{file}-{one['kind']}" for file, one in MANIFESTS])
def test_the_schemas_have_nothing_against_it(file: str, manifest: Manifest, version: str) -> None:
    """Unknown fields are errors too."""
    assert kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_find_a_slip() -> None:
    """A test of the test: what is no field of a Deployment is refused."""
    deployment = {**DEPLOYMENTS["deployment"], "spec": {**DEPLOYMENTS["deployment"]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, OLDEST, strict=True)


def test_check_has_nothing_against_the_configuration(configuration: Path) -> None:
    checked = run_command("check", "--config", configuration)
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "", "")


def test_pods_keep_the_restricted_standard(name: str) -> None:
    """Kubernetes' Pod Security Standard `restricted`, and a root that cannot be written."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    assert pod["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "secret", "emptyDir"}
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert [container["securityContext"] for container in pod["containers"]] == [expected] * len(pod["containers"])


def test_the_pod_outlives_the_drain(name: str, settings: Settings) -> None:
    """The grace period covers drain_delay and drain; a neighbour stays until the proxy no longer needs it."""
    needed = settings.timeouts.drain_delay + settings.timeouts.drain
    assert 0 < needed < PODS[name]["terminationGracePeriodSeconds"]
    for container in PODS[name]["containers"]:
        if container["name"] != "aop-proxy":
            slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert needed <= slept < PODS[name]["terminationGracePeriodSeconds"]


def test_drain_delay_covers_a_failing_readiness_probe(name: str, settings: Settings) -> None:
    probe = proxy_container(name)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.timeouts.drain_delay


def test_ports_are_the_listeners(name: str, settings: Settings) -> None:
    """The Service's target and the probes' ports are those that the configuration opens; no more is shown than is asked."""
    container = proxy_container(name)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.admin is not None
    assert ports == {"https": settings.listen[0].port, "admin": settings.admin.port}
    assert set(settings.admin.shows) == {"health", "metrics"}
    probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [probe["port"] for probe in probes] == ["admin"] * 3
    assert [probe["path"] for probe in probes] == ["/healthz", "/healthz", "/readyz"]
    service = of_kind(name, "Service")["spec"]
    assert [port["targetPort"] for port in service["ports"]] == ["https"]


def test_selectors_meet_the_pods(name: str) -> None:
    labels = DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"]
    selectors = [DEPLOYMENTS[name]["spec"]["selector"]["matchLabels"], of_kind(name, "Service")["spec"]["selector"]]
    selectors.append(of_kind(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    assert selectors == [labels] * 3


def test_files_are_mounted_where_they_are_read(name: str, settings: Settings) -> None:
    """As directories, so that a change is seen, and watched for; the Secret by the pod's group alone."""
    container = proxy_container(name)
    assert all("subPath" not in mount and mount["readOnly"] for mount in container["volumeMounts"])
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    text = of_kind(name, "ConfigMap")["data"]["proxy.yaml"]
    assert mounted == {"/etc/aop-proxy", "/run/secrets/origin", "/run/secrets/client-ca"}
    assert text.count("/run/secrets/origin/") == 2
    assert settings.reload.watch is not None
    (secret,) = [volume["secret"] for volume in PODS[name]["volumes"] if "secret" in volume]
    assert secret["defaultMode"] == 0o440
    assert PODS[name]["securityContext"]["fsGroup"] == PODS[name]["securityContext"]["runAsGroup"]


def test_the_autoscaler_aims_at_what_is_planned_with() -> None:
    """A pod is a proxy in the sense of docs/scaling.md: one worker that asks for one core, as busy as is said there."""
    scaler = of_kind("deployment", "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == DEPLOYMENTS["deployment"]["metadata"]["name"]
    assert "replicas" not in DEPLOYMENTS["deployment"]["spec"]
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == round(sizing.BUSY * 100)
    resources = proxy_container("deployment")["resources"]
    assert resources["requests"]["cpu"] == "1"
    assert "cpu" not in resources["limits"]


def test_a_pod_is_one_worker(settings: Settings) -> None:
    assert settings.workers == 1


def test_the_application_is_reached_through_the_gate_alone() -> None:
    """By the policy in front of it, or by its own loopback address; its port is no container port and no Service's."""
    policy = of_kind("deployment", "NetworkPolicy")["spec"]
    allowed = DEPLOYMENTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": allowed}}]
    assert policy["policyTypes"] == ["Ingress"]
    (app,) = [container for container in PODS["sidecar"]["containers"] if container["name"] == "app"]
    assert app["args"][app["args"].index("--bind") + 1] == "127.0.0.1:8000"
    assert int(app["args"][app["args"].index("--keep-alive") + 1]) > 900
    assert "ports" not in app
