"""cluster/: what it hands to KubeRay, `ray up`, Docker and Slurm is what these take.

None of them is at hand: the files are held against their schemas and against each other.
"""

import copy
import functools
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from distinf import __version__
from distinf.cli.arguments import parser
from distinf.config import load
from tests.support.kuberay import wrong
from tests.support.runs import ROOT

CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
LAUNCHED = sorted((CLUSTER / "ray-up").glob("*.yaml"))
TRACKED = [ROOT / name for name in subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True,
).stdout.split("\n") if name]  # fmt: skip


def documents(file: Path) -> list[dict]:
    return list(yaml.safe_load_all(file.read_text()))


def only(name: str) -> dict:
    (found,) = documents(CLUSTER / "kuberay" / name)
    return found


def clusters() -> list[dict]:
    """The specification of each cluster that a manifest asks for."""
    return [only("raycluster.yaml")["spec"], only("rayjob.yaml")["spec"]["rayClusterSpec"]]


def pods(cluster: dict) -> list[dict]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


# -- Kubernetes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_has_fields_that_kuberay_and_kubernetes_know(file):
    for document in documents(file):
        version = "v1" if document["kind"] == "PersistentVolumeClaim" else "ray.io/v1"
        assert document["apiVersion"] == version
        assert list(wrong(document, document["kind"], file.name)) == []


def misspelt(found: dict, *path: str | int) -> dict:
    """A copy in which the key at the path's end has an `x` more."""
    found = copy.deepcopy(found)
    *outer, last = path
    inner = found
    for word in outer:
        inner = inner[word]
    inner[f"{last}x"] = inner.pop(last)
    return found


CONTAINER = ("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    "path",
    [("backoffLimit",), ("rayClusterSpec", "authOptions"), (*CONTAINER, "volumeMounts"),
     ("rayClusterSpec", "authOptions", "mode"), (*CONTAINER, "resources", "limits")],
    ids=lambda path: path[-1],
)  # fmt: skip
def test_a_misspelt_field_and_another_type_are_found(path):
    job = only("rayjob.yaml")
    (said,) = set(wrong(misspelt(job, "spec", *path), "RayJob", "job"))
    assert said.endswith(f"has no {path[-1]}x")
    job["spec"]["backoffLimit"] = "3"
    assert list(wrong(job, "RayJob", "job")) == ["job.spec.backoffLimit: '3' is no integer"]


def test_a_job_s_cluster_is_that_of_the_cluster_that_stays():
    stays, of_job = clusters()
    assert stays == of_job


@pytest.mark.parametrize("cluster", clusters())
def test_a_cluster_asks_for_a_token_and_keeps_workers_off_its_head(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == PINS["ray"]
    assert Version(cluster["rayVersion"]) >= Version("2.52")  # with it, KubeRay sets a token
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:  # a run waits for no node
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0


@pytest.mark.parametrize("cluster", clusters())
def test_every_pod_sees_the_runs_and_the_models_and_is_no_root(cluster):
    claims = {claim["metadata"]["name"] for claim in documents(CLUSTER / "kuberay/volumes.yaml")}
    for pod in pods(cluster):
        volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        assert set(volumes.values()) == claims
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts.keys() == volumes.keys()
            environment = {one["name"]: one.get("value") for one in container["env"]}
            assert environment["HF_HOME"].startswith(mounts["models"] + "/")
            assert container["image"].endswith(f"distinf:{__version__}")
            asked = container["resources"]
            assert asked["requests"] == asked["limits"]
    head, *workers = pods(cluster)
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert all("nvidia.com/gpu" in w["containers"][0]["resources"]["limits"] for w in workers)


def test_a_job_starts_a_run_that_there_is_and_again_after_a_failure():
    job = only("rayjob.yaml")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    command, *words = shlex.split(job["entrypoint"])
    assert command == "distinf"
    options = parser().parse_args(words)
    config = options.config.removeprefix("/opt/distinf/")
    assert load(str(ROOT / config), options.overrides).runtime.address == "auto"
    (head,) = pods(job["rayClusterSpec"])[0]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["volumeMounts"]}
    assert options.out.startswith(mounts["runs"] + "/")


# -- ray up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)
def test_a_launcher_s_file_is_one_by_ray_s_own_schema(file):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    (found,) = documents(file)
    jsonschema.validate(found, schema)
    validate_config(prepare_config(found))
    with pytest.raises(jsonschema.ValidationError, match="setup_commandsx"):
        jsonschema.validate(misspelt(found, "setup_commands"), schema)


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)
def test_what_a_launcher_starts_asks_for_a_token_and_has_all_its_files(file):
    (found,) = documents(file)
    sourced = ". ~/distinf/cluster/ray-up/environment.sh && "
    starts = found["head_start_ray_commands"] + found["worker_start_ray_commands"]
    assert all(command.startswith(sourced) for command in starts)
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "ray-up/environment.sh").read_text()
    assert found["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in found["setup_commands"]
    for command in found["setup_commands"] + starts:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for start in (words for words in starts if "ray start" in words):
        options = re.findall(r"--[\w-]+", start.partition("ray start")[2])
        assert [one for one in options if f"{one} " not in options_of_ray_start()] == []
    for kind in found.get("available_node_types", {}).values():
        if kind.get("max_workers"):
            assert kind["min_workers"] == kind["max_workers"]  # a run waits for no node
            assert kind["resources"]["GPU"] > 0


@functools.cache
def options_of_ray_start() -> str:
    done = subprocess.run(["ray", "start", "--help"], capture_output=True, text=True, check=True)
    return done.stdout


# -- an image, and scripts -------------------------------------------------------------------------


def test_the_image_copies_what_there_is_and_installs_the_tested_versions():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    copied = [word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists()] == []
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert set(copied) == {line[1:] for line in ignored if line.startswith("!")}
    values = dict(rest.split("=") for name, rest in lines if name == "ARG")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{values['PYTHON']}.0")
    assert set(values["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
    (install,) = [rest for name, rest in lines if "pip install" in rest]
    assert '-c constraints.txt -e ".[${EXTRAS}]"' in install
    assert [rest for name, rest in lines if name == "USER"] == ["1000"]
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= set(copied)
    assert f"distinf:{__version__}" in text


def scripts() -> list[Path]:
    """Every shell script of the repository."""
    found = [path for path in TRACKED if path.suffix in (".sh", ".sbatch")]
    for path in TRACKED:
        if path.exists() and not path.suffix and path.read_bytes()[:64].startswith(b"#!"):
            found.append(path)
    return [path for path in found if "python" not in path.read_text().splitlines()[0]]


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(scripts()) >= 5
