"""The files of docs/deploy, against their own schemas and against each other and the gateway. Starts nothing.

A test skips without its package; with REQUIRE_DEPLOY=1 that is a failure.
"""

from __future__ import annotations

import json
import re
import tempfile
import unittest
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.settings import SETTINGS, Settings, load
from tests.deploying import DEPLOY, package

KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose"
VERSIONS = ("1.32", "1.37")  # the oldest and the newest that the manifests are held to
OWN = "inference-gateway"
FILLED_IN = {"API_KEYS": "alice:open-sesame", "METRICS_KEY": "m", "REDIS_PASSWORD": "r", "GRAFANA_PASSWORD": "g"}
HAPROXY_SEES_S = 2 * 1 + 1  # docs/deploy/haproxy: fall 2, inter 1s, and a check under way


def names_of_settings() -> set[str]:
    return {setting.name for setting in SETTINGS}


def settings_of(variables: Mapping[str, str], engines: str) -> Settings:
    """What the gateway makes of them, with `engines` as the text of ENGINES_FILE. Raises when it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engines.json"
        file.write_text(engines, "utf-8")
        return load({**variables, "ENGINES_FILE": str(file)}, None)


class DeploymentTest(unittest.TestCase):
    def documents(self, *files: Path) -> list[Any]:
        yaml = package(self, "yaml")
        return [document for file in files for document in yaml.safe_load_all(file.read_text("utf-8")) if document]


class KubernetesTest(DeploymentTest):
    def setUp(self) -> None:
        self.all = self.documents(
            *sorted(KUBERNETES.glob("*.yaml")), *sorted((KUBERNETES / "monitoring").glob("*.yaml"))
        )

    def one(self, kind: str, name: str = "") -> Any:
        (found,) = [d for d in self.all if d.get("kind") == kind and name in ("", d["metadata"]["name"])]
        return found

    @property
    def pod(self) -> Any:
        return self.one("Deployment")["spec"]["template"]

    @property
    def container(self) -> Any:
        (container,) = self.pod["spec"]["containers"]
        return container

    @property
    def settings(self) -> dict[str, str]:
        found: dict[str, str] = self.one("ConfigMap", "gateway-settings")["data"]
        return found

    def test_each_document_is_valid_to_the_letter_in_the_oldest_and_the_newest_version(self) -> None:
        validator = package(self, "kubernetes_validate")
        kinds = set()
        for document in self.documents(*sorted(KUBERNETES.glob("*.yaml"))):
            kinds.add(document["kind"])
            for version in VERSIONS:
                with self.subTest(document["kind"], version=version):
                    validator.validate(document, version, strict=True)
        expected = (
            "Namespace ConfigMap Secret Deployment Service HorizontalPodAutoscaler PodDisruptionBudget NetworkPolicy"
        )
        self.assertEqual(kinds, {*expected.split(), "ServiceAccount", "Role", "RoleBinding"})

    def test_a_word_too_many_is_noticed(self) -> None:
        validator = package(self, "kubernetes_validate")
        document = self.one("Deployment")
        document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
        with self.assertRaises(validator.ValidationError):
            validator.validate(document, VERSIONS[-1], strict=True)

    def test_the_gateway_takes_the_settings_and_the_engines_as_they_stand(self) -> None:
        secret = self.one("Secret", "gateway-secrets")["stringData"]
        self.assertLessEqual({*self.settings, *secret}, names_of_settings())
        engines = self.one("ConfigMap", "gateway-engines")["data"]["engines.json"]
        got = settings_of({**self.settings, **secret, "API_KEYS": "alice:open-sesame"}, engines)
        self.assertEqual(got.port, self.container["ports"][0]["containerPort"])
        (mount,) = self.container["volumeMounts"]
        self.assertEqual(self.settings["ENGINES_FILE"], f"{mount['mountPath']}/engines.json")

    def test_without_a_key_no_gateway_starts(self) -> None:
        secret = self.one("Secret", "gateway-secrets")["stringData"]
        engines = self.one("ConfigMap", "gateway-engines")["data"]["engines.json"]
        with self.assertRaisesRegex(Exception, "API_KEYS"):
            settings_of({**self.settings, **secret}, engines)
        for kept in [d for d in self.all if d.get("kind") == "Secret"]:
            self.assertEqual(set(kept["stringData"].values()), {""}, "no secret stands in the repository")

    def test_the_end_is_given_the_time_that_it_takes(self) -> None:
        took_s = float(self.settings["DRAIN_DELAY"]) + float(self.settings["DRAIN_TIMEOUT"])
        self.assertGreaterEqual(self.pod["spec"]["terminationGracePeriodSeconds"], took_s + 20)
        probe = self.container["readinessProbe"]
        noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        self.assertGreater(float(self.settings["DRAIN_DELAY"]), noticed_s)
        self.assertNotIn("lifecycle", self.container)

    def test_probes_ask_what_is_meant_for_them(self) -> None:
        paths = {name: self.container[name]["httpGet"]["path"] for name in self.container if name.endswith("Probe")}
        expected = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        self.assertEqual(paths, expected)
        self.assertEqual({self.container[name]["httpGet"]["port"] for name in paths}, {"http"})

    def test_the_pod_is_locked_as_the_restricted_standard_wants_and_more(self) -> None:
        spec, locked = self.pod["spec"], self.container["securityContext"]
        self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
        self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertIs(locked["allowPrivilegeEscalation"], False)
        self.assertIs(locked["readOnlyRootFilesystem"], True)
        self.assertEqual(locked["capabilities"], {"drop": ["ALL"]})
        for risky in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertNotIn(risky, spec)
        self.assertEqual({tuple(volume)[1] for volume in spec["volumes"]}, {"configMap"})
        user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
        assert user
        self.assertEqual((spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]), (10001, 10001))
        self.assertEqual(user.groups(), ("10001", "10001"))
        labels = self.one("Namespace")["metadata"]["labels"]
        self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "restricted")

    def test_everything_names_what_is_there(self) -> None:
        labels = self.pod["metadata"]["labels"]
        service, monitor = self.one("Service")["spec"], self.one("ServiceMonitor")["spec"]
        self.assertEqual(self.one("Deployment")["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(service["selector"], labels)
        self.assertEqual(self.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(self.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels)
        self.assertLessEqual(
            monitor["selector"]["matchLabels"].items(), self.one("Service")["metadata"]["labels"].items()
        )
        self.assertIn(monitor["endpoints"][0]["port"], [port["name"] for port in service["ports"]])
        self.assertEqual({port["targetPort"] for port in service["ports"]}, {self.container["ports"][0]["name"]})
        key = monitor["endpoints"][0]["authorization"]["credentials"]
        self.assertIn(key["key"], self.one("Secret", key["name"])["stringData"])
        target = self.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
        self.assertEqual((target["kind"], target["name"]), ("Deployment", self.one("Deployment")["metadata"]["name"]))
        self.assertNotIn("replicas", self.one("Deployment")["spec"])
        for source in self.container["envFrom"]:
            kind, reference = next(iter(source.items()))
            self.one({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
        account = self.pod["spec"]["serviceAccountName"]
        (subject,) = self.one("RoleBinding")["subjects"]
        self.assertEqual((subject["name"], subject["namespace"]), (account, OWN))
        self.assertEqual(self.one("RoleBinding")["roleRef"]["name"], self.one("Role")["metadata"]["name"])
        self.assertEqual(self.one("Role")["rules"][0]["verbs"], ["list"])
        (model,) = json.loads(self.one("ConfigMap", "gateway-engines")["data"]["engines.json"])["models"].values()
        looked_up = model["discover"]["kubernetes"]
        self.assertEqual(looked_up["namespace"], self.one("Role")["metadata"]["namespace"])
        allowed = [
            to["namespaceSelector"]["matchLabels"]
            for rule in self.one("NetworkPolicy")["spec"]["egress"]
            for to in rule.get("to", ())
        ]
        self.assertIn({"kubernetes.io/metadata.name": looked_up["namespace"]}, allowed)
        for document in self.all:
            if "kind" in document and document["kind"] not in ("Namespace", "Role", "RoleBinding"):
                self.assertEqual(document["metadata"]["namespace"], OWN, document["kind"])

    def test_the_metric_that_scales_is_one_of_the_gateways_and_the_adapters(self) -> None:
        (pods,) = [m for m in self.one("HorizontalPodAutoscaler")["spec"]["metrics"] if m["type"] == "Pods"]
        name = pods["pods"]["metric"]["name"]
        (adapter,) = [d for d in self.all if "rules" in d and "kind" not in d]
        (rule,) = adapter["rules"]["custom"]
        self.assertEqual(rule["name"]["as"], name)
        self.assertTrue(rule["seriesQuery"].startswith(name + "{"))
        self.assertIn(f"`{name}`", (DEPLOY.parent / "OPERATIONS.md").read_text("utf-8"))


class ComposeTest(DeploymentTest):
    def setUp(self) -> None:
        (self.file,) = self.documents(COMPOSE / "compose.yaml")
        self.services: dict[str, Any] = self.file["services"]

    def test_it_is_what_the_compose_specification_allows(self) -> None:
        self.parsed(self.file)

    def test_a_word_too_many_is_noticed(self) -> None:
        self.services["redis"]["restarts"] = "always"
        with self.assertRaisesRegex(ValueError, "restarts"):
            self.parsed(self.file)

    def parsed(self, file: Any) -> None:
        specification, yaml = package(self, "compose_spec"), package(self, "yaml")
        # Merged by YAML already; the package takes addresses alone where Compose knows `host-gateway`.
        text = yaml.safe_dump({name: value for name, value in file.items() if not name.startswith("x-")})
        specification.PyCompose.from_yaml(text.replace("host-gateway", "172.17.0.1")).validate()

    def variables(self, service: str) -> dict[str, str]:
        """A service's environment with what `.env` has been filled with put in."""

        def put(match: re.Match[str]) -> str:
            return FILLED_IN[match[1]]

        found = self.services[service]["environment"]
        return {name: re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", put, value) for name, value in found.items()}

    def test_the_gateways_take_their_settings_and_engines(self) -> None:
        for service in ("gateway-1", "gateway-2"):
            variables = self.variables(service)
            self.assertLessEqual(set(variables), names_of_settings())
            variables["HOST"] = "0.0.0.0"
            got = settings_of(variables, (COMPOSE / "engines.json").read_text("utf-8"))
            self.assertGreater(
                float(self.services[service]["stop_grace_period"][:-1]), got.drain_delay_s + got.drain_timeout_s
            )
            self.assertGreater(got.drain_delay_s, HAPROXY_SEES_S)

    def test_what_has_to_be_filled_in_stands_in_the_example_empty(self) -> None:
        text = (COMPOSE / "compose.yaml").read_text("utf-8")
        needed = set(re.findall(r"\$\{(\w+):\?", text))
        given = dict(re.findall(r"^(\w+)=(.*)$", (COMPOSE / "env.example").read_text("utf-8"), re.MULTILINE))
        self.assertEqual(given, dict.fromkeys(needed, ""))
        self.assertEqual(needed, set(FILLED_IN))

    def test_every_mounted_file_is_there_and_cannot_be_written_to(self) -> None:
        mounted = [volume for service in self.services.values() for volume in service.get("volumes", ())]
        files = [volume.split(":") for volume in mounted if volume.startswith(".")]
        self.assertGreaterEqual(len(files), 8)
        for source, _, mode in files:
            self.assertTrue((COMPOSE / source).exists(), source)
            self.assertEqual(mode, "ro", source)
        named = {volume.partition(":")[0] for volume in mounted if not volume.startswith(".")}
        self.assertEqual(named, set(self.file["volumes"]))

    def test_every_service_is_locked_and_every_image_has_a_version(self) -> None:
        for name, service in self.services.items():
            self.assertEqual(
                (service["cap_drop"], service["security_opt"]), (["ALL"], ["no-new-privileges:true"]), name
            )
            self.assertIs(service["read_only"], name != "prometheus", name)
            if not name.startswith("gateway"):
                self.assertRegex(service["image"], r"^docker\.io/[\w./-]+:v?\d+\.\d+[\w.-]*$")
            for port in service.get("ports", ()):
                self.assertTrue(port.startswith("127.0.0.1:"), f"{name} publishes {port} to everybody")

    def test_the_proxy_names_the_gateways_and_they_name_the_proxy(self) -> None:
        def address(service: str) -> str:
            found: str = self.services[service]["networks"]["front"]["ipv4_address"]
            return found

        variables = self.variables("haproxy")
        for number in (1, 2):
            self.assertEqual(variables[f"GATEWAY_{number}"], f"{address(f'gateway-{number}')}:8080")
            self.assertEqual(self.variables(f"gateway-{number}")["TRUSTED_PROXIES"], address("haproxy"))
        presets = re.findall(
            r"^ +presetenv (\w+)", (DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8"), re.MULTILINE
        )
        self.assertEqual(set(presets), set(variables))

    def test_prometheus_asks_the_services_that_there_are(self) -> None:
        (file,) = self.documents(COMPOSE / "prometheus.yml")
        targets = {t for job in file["scrape_configs"] for c in job["static_configs"] for t in c["targets"]}
        self.assertEqual(targets, {"gateway-1:8080", "gateway-2:8080", "haproxy:8404"})
        self.assertLessEqual({target.partition(":")[0] for target in targets}, set(self.services))
        (alerts,) = [t for a in file["alerting"]["alertmanagers"] for c in a["static_configs"] for t in c["targets"]]
        self.assertEqual(alerts, "alertmanager:9093")
        self.assertNotIn("ALERTS_URL", self.variables("gateway-1"))  # who is told by Prometheus is not told twice
        key_file = file["scrape_configs"][0]["authorization"]["credentials_file"]
        self.assertEqual(key_file, f"/run/secrets/{self.services['prometheus']['secrets'][0]}")

    def test_grafana_is_given_prometheus_and_the_dashboard(self) -> None:
        (sources,) = self.documents(*(COMPOSE / "grafana" / "datasources").iterdir())
        (source,) = sources["datasources"]
        self.assertEqual(
            (source["type"], source["url"], source["isDefault"]), ("prometheus", "http://prometheus:9090", True)
        )
        (boards,) = self.documents(*(COMPOSE / "grafana" / "dashboards").iterdir())
        folder = boards["providers"][0]["options"]["path"]
        mounts = [volume for volume in self.services["grafana"]["volumes"] if volume.startswith("../grafana/")]
        self.assertEqual([volume.split(":")[1] for volume in mounts], [f"{folder}/inference-gateway.json"])


class ImageFilesTest(unittest.TestCase):
    def test_the_image_is_made_of_the_gateway_alone(self) -> None:
        kept = [line[1:] for line in self.lines(DEPLOY / "Dockerfile.dockerignore") if line.startswith("!")]
        self.assertEqual(kept, ["main.py", "inference.py", "LICENSE", "gateway"])
        copied = re.findall(r"^COPY (?!--from)(.*)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
        self.assertEqual({word for line in copied for word in line.split()[:-1]}, set(kept))

    def test_nothing_is_run_in_the_stage_that_serves(self) -> None:
        last = (DEPLOY / "Dockerfile").read_text("utf-8").split("\nFROM ")[-1]
        self.assertNotRegex(last, r"(?m)^RUN ")
        self.assertRegex(last, r"(?m)^HEALTHCHECK ")
        self.assertNotIn("curl", last)

    def lines(self, file: Path) -> Iterator[str]:
        return iter(file.read_text("utf-8").splitlines())


class UnitFileTest(unittest.TestCase):
    TEXT = (DEPLOY / "systemd" / "inference-gateway.service").read_text("utf-8")

    def test_its_settings_are_the_gateways_and_its_end_is_given_time(self) -> None:
        variables = dict(
            word.split("=", 1)
            for line in re.findall(r"^Environment=(.*)$", self.TEXT, re.MULTILINE)
            for word in line.split()
        )
        del variables["PYTHONDONTWRITEBYTECODE"]
        self.assertLessEqual(set(variables), names_of_settings())
        usual = load({}, None)
        (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", self.TEXT, re.MULTILINE)
        self.assertGreater(float(stop_s), usual.drain_delay_s + usual.drain_timeout_s)


if __name__ == "__main__":
    unittest.main()
