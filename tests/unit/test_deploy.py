"""The files of deploy/ parse, name each other rightly, and call the command as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from sparkml_sgdals.cli.app import app

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
FILES = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
OBJECTS = {
    (one["kind"], one["metadata"]["name"]): one
    for file in FILES
    for one in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
}
PODS = {name: one["spec"]["template"] for (_, name), one in OBJECTS.items()
        if "template" in one["spec" if "spec" in one else "metadata"]}  # fmt: skip


def calls():
    """Arguments of each container, by where they stand."""
    found = {f"compose {name}": one["command"] for name, one in COMPOSE["services"].items()}
    for name, pod in PODS.items():
        found[f"kubernetes {name}"] = pod["spec"]["containers"][0]["args"]
    return [pytest.param(words, id=name) for name, words in found.items()]


@pytest.mark.parametrize("words", calls())
def test_the_command_takes_the_options(words):
    command = typer.main.get_command(app).commands[words[0]]
    # compose's variables: what stands after :- where there is one
    given = [re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", r"\1", word) for word in words[1:]]
    settings = OBJECTS["ConfigMap", "recommender-settings"]["data"]
    given = [re.sub(r"\$\((\w+)\)", lambda name: settings[name[1]], word) for word in given]
    context = command.make_context(words[0], list(given))
    assert context.params["model_path"] == "/models/films"


def test_all_files_are_listed():
    found = {p.name for p in (DEPLOY / "kubernetes").iterdir()} - {"kustomization.yaml"}
    assert found == set(FILES)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_names_what_is_there(name):
    pod = PODS[name]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes.values()
        if "persistentVolumeClaim" in volume
    }
    assert all(("PersistentVolumeClaim", claim) in OBJECTS for claim in claims)
    (settings,) = [source["configMapRef"]["name"] for source in container["envFrom"]]
    known = OBJECTS["ConfigMap", settings]["data"]
    used = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
    assert used <= set(known)
    # an environment holds text only
    assert all(isinstance(value, str) for value in known.values())
    if name == "predictor":
        (secret,) = [v["secret"]["secretName"] for v in volumes.values() if "secret" in v]
        assert secret in (DEPLOY / "kubernetes" / "settings.yaml").read_text()


def test_selectors_and_ports_meet():
    for (kind, name), one in OBJECTS.items():
        if kind not in ("Service", "StatefulSet", "Deployment", "PodDisruptionBudget"):
            continue
        selector = one["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        labels = PODS[name]["metadata"]["labels"]
        assert selector.items() <= labels.items(), (kind, name)
    (container,) = PODS["predictor"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (port,) = OBJECTS["Service", "predictor"]["spec"]["ports"]
    assert port["targetPort"] in ports
    assert f"--port={ports['http']}" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_one_modeler_only_and_it_may_finish_its_batch():
    modeler = OBJECTS["StatefulSet", "modeler"]["spec"]
    assert modeler["replicas"] == 1
    assert modeler["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert COMPOSE["services"]["modeler"]["deploy"]["replicas"] == 1


def test_compose_names_what_it_declares():
    for service in COMPOSE["services"].values():
        assert {v.split(":")[0] for v in service["volumes"]} <= set(COMPOSE["volumes"])
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    secrets = {f"/run/secrets/{name}" for name in COMPOSE["secrets"]}
    words = COMPOSE["services"]["predictor"]["command"]
    assert {w.split("=")[1] for w in words if w.startswith("--token-file")} == secrets
