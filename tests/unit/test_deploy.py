"""The files of deploy/ parse, name each other rightly, and call the command as it is."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from sparkml_sgdals import __version__
from sparkml_sgdals.cli.app import app

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
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


DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
CONTAINERS = {f"compose {name}": one for name, one in COMPOSE["services"].items()}
CONTAINERS |= {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}


def words_of(container):
    """Arguments of a container."""
    return container.get("command") or container["args"]


def mounted(container):
    """Places that are mounted, and whether they may be written to."""
    told = container.get("volumeMounts")
    if told is not None:
        return {one["mountPath"]: not one.get("readOnly", False) for one in told}
    return {one.split(":")[1]: not one.endswith(":ro") for one in container["volumes"]}


def test_the_image_is_of_this_version_and_is_not_pulled_again_and_again():
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.parent.name != "secrets"]
    assert not [path for path in files if ":latest" in path.read_text()]
    (tag,) = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["images"]
    assert tag["newTag"] == __version__
    for name, container in CONTAINERS.items():
        assert __version__ in container["image"], name
        if name.startswith("compose"):
            assert container["pull_policy"] == "build"
        else:
            assert container["imagePullPolicy"] == "IfNotPresent"
    assert f"sparkml-sgdals:{__version__}" in DOCKERFILE


def test_what_is_copied_is_there_and_sent_to_the_engine():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE, re.M)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    # and no more than that
    assert sorted(kept) == sorted(names)
    assert "*" in lines


def test_what_a_container_writes_to_is_mounted_and_its_user_s():
    (uid,) = set(re.findall(r"useradd --uid (\d+)", DOCKERFILE))
    assert re.search(rf"^USER {uid}$", DOCKERFILE, re.M)
    # a new named volume takes the owner of the folder that it is mounted at
    assert re.search(rf"install -d -o {uid} -g {uid} .*/models\b", DOCKERFILE)
    for name, pod in PODS.items():
        security = pod["spec"]["securityContext"]
        assert (security["runAsUser"], security["fsGroup"]) == (int(uid), int(uid)), name
    for name, container in CONTAINERS.items():
        words, places = words_of(container), mounted(container)
        assert container.get("read_only") or container["securityContext"]["readOnlyRootFilesystem"]
        assert places["/tmp"]
        assert places["/models"] == (words[0] == "stream"), name
        files = ("--alive-file=", "--cache=")
        written = [word.split("=")[1] for word in words if word.startswith(files)]
        assert written, name
        for path in written:
            assert any(path.startswith(place) and places[place] for place in places), path
    assert re.search(r"^ENV NUMBA_CACHE_DIR=/tmp/", DOCKERFILE, re.M)


def test_nothing_is_fetched_or_compiled_at_a_start():
    for container in CONTAINERS.values():
        assert not [word for word in words_of(container) if "jars.packages" in word]
    assert "prepare.py connectors" in DOCKERFILE
    # by the user whose they are
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("prepare.py kernels")


def test_the_modeler_is_looked_after():
    streams = [one for one in CONTAINERS.values() if words_of(one)[0] == "stream"]
    assert len(streams) == 2
    for container in streams:
        (alive,) = [w.split("=")[1] for w in words_of(container) if w.startswith("--alive-file=")]
        probes = [container[name]["exec"]["command"] for name in ("startupProbe", "livenessProbe")
                  if name in container] or [container["healthcheck"]["test"]]  # fmt: skip
        assert all(alive in " ".join(probe) for probe in probes)


def test_a_probe_tells_a_stream_that_hangs(tmp_path):
    """Their words, run on a file that is not there, fresh, and old."""
    alive = tmp_path / "alive"
    *_, pod = CONTAINERS["modeler"]["livenessProbe"]["exec"]["command"]
    *_, engine = COMPOSE["services"]["modeler"]["healthcheck"]["test"]
    for words in (pod, engine.replace("$$", "$")):
        found = []
        for seconds in (None, 0, 1_700_000_000):
            alive.unlink(missing_ok=True)
            if seconds is not None:
                alive.touch()
            if seconds:
                os.utime(alive, (seconds, seconds))
            told = subprocess.run(["sh", "-c", words.replace("/tmp/alive", str(alive))],
                                  check=False, capture_output=True)  # fmt: skip
            found.append(told.returncode == 0)
        assert found == [False, True, False]


def test_the_token_lies_where_no_repository_takes_it():
    (place,) = re.findall(r":-\./([^}]+)}", COMPOSE["secrets"]["post_token"]["file"])
    ignored = [one for one in (ROOT / ".gitignore").read_text().split() if "deploy" in one]
    assert any(fnmatch.fnmatch(f"deploy/{place}", f"{one}*") for one in ignored)
    page = (ROOT / "docs/how-to/deploy.md").read_text()
    assert f"> deploy/{place}" in page
    volumes = PODS["predictor"]["spec"]["volumes"]
    (secret,) = [one["secret"]["secretName"] for one in volumes if "secret" in one]
    assert f"kubectl create secret generic {secret}" in page


@pytest.mark.parametrize("options", [(), ("-Da=b c", "-Dd=e")])
def test_the_image_starts_as_an_executor(options, tmp_path):
    """What it would start is what Spark's own image starts; scripts/build_image.py starts it."""
    (tmp_path / "tini").write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    (tmp_path / "tini").chmod(0o755)
    names = {
        "SPARK_EXECUTOR_MEMORY": "1g", "SPARK_DRIVER_URL": "spark://d:1",
        "SPARK_EXECUTOR_ID": "3", "SPARK_EXECUTOR_CORES": "2", "SPARK_APPLICATION_ID": "app",
        "SPARK_EXECUTOR_POD_IP": "10.0.0.7", "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_EXECUTOR_POD_NAME": "pod",
    }  # fmt: skip
    names |= {f"SPARK_JAVA_OPT_{n}": option for n, option in enumerate(options)}
    names["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    run = subprocess.run(["sh", str(DEPLOY / "entrypoint.sh"), "executor"], env=names,
                         capture_output=True, text=True, check=True)  # fmt: skip
    words = [line[1:-1] for line in run.stdout.splitlines()]
    assert words[:3] == ["-s", "--", "java"]
    assert words[3 : 3 + len(options)] == list(options)
    assert "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend" in words
    pairs = dict(zip(words[-14::2], words[-13::2], strict=True))
    assert pairs["--driver-url"] == "spark://d:1"
    assert pairs["--podName"] == "pod"
    run = subprocess.run(["sh", str(DEPLOY / "entrypoint.sh"), "serve", "a b"], env=names,
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.splitlines() == ["<-s>", "<-->", "<sparkml-sgdals>", "<serve>", "<a b>"]
