"""The files for KubeRay and `ray up` are what their schemas allow, and fit together. (No cluster needed.)"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as SchemaError
from kubernetes_validate import ValidationError as KubernetesError
from kubernetes_validate import validate as validate_kubernetes
from packaging.requirements import Requirement
from project import PROJECT, ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from rllib_haml.algorithms.placement import shortage
from rllib_haml.cli.options import TrainOptions
from rllib_haml.cli.train import train
from rllib_haml.config.document import read_file
from rllib_haml.config.experiment import Experiment
from rllib_haml.config.parse import parse_experiments

KUBERNETES = "1.29"
SCHEMAS: dict[str, Any] = json.loads((ROOT / "tests/data/kuberay.json").read_text(encoding="utf-8"))
RAY_UP: dict[str, Any] = yaml.safe_load((ROOT / "docker/ray-up.yaml").read_text(encoding="utf-8"))
EXAMPLE = "tuned_examples/happo/cluster_halfcheetah_2x3.yaml"


def documents() -> dict[str, dict[str, Any]]:
    """All manifests, by kind."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docker/kuberay").glob("*.yaml"))]
    return {document["kind"]: document for text in texts for document in yaml.safe_load_all(text)}


CLUSTER = documents()["RayCluster"]["spec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield from (value for key, value in document.items() if key == "template")
    for value in document.values() if isinstance(document, dict) else document:
        if isinstance(value, (dict, list)):
            yield from pod_templates(value)


def check(document: dict[str, Any]) -> None:
    """Refuses what KubeRay or Kubernetes would, unknown fields too."""
    if document["kind"] not in SCHEMAS:
        validate_kubernetes(document, KUBERNETES, strict=True)
        return
    schema = SCHEMAS[document["kind"]] | {"$defs": SCHEMAS["$defs"]}
    Draft202012Validator(schema).validate(document)
    for template in pod_templates(document["spec"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
        validate_kubernetes(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", documents())
def test_manifests_keep_to_their_schemas(kind: str) -> None:
    check(documents()[kind])


def test_there_is_a_cluster_a_job_and_a_volume() -> None:
    assert set(documents()) == {"RayCluster", "RayJob", "PersistentVolumeClaim"}
    assert len(list(pod_templates(CLUSTER))) == 3


HEAD = ["spec", "headGroupSpec", "template", "spec", "containers", 0]


@pytest.mark.parametrize(
    "kind, path, key",
    [
        ("PersistentVolumeClaim", ["spec"], "accessMode"),
        ("RayJob", ["spec"], "entryPoint"),
        ("RayJob", [], "specs"),
        ("RayCluster", ["spec"], "raysVersion"),
        ("RayCluster", ["spec", "headGroupSpec"], "rayStartParam"),
        ("RayCluster", ["spec", "workerGroupSpecs", 1], "replica"),
        ("RayCluster", ["spec", "workerGroupSpecs", 1, "template", "spec"], "volume"),
        ("RayCluster", HEAD, "imagePull"),
        ("RayCluster", [*HEAD, "livenessProbe"], "period"),
    ],
)
def test_a_misspelt_field_is_refused(kind: str, path: list[Any], key: str) -> None:
    document = deepcopy(documents()[kind])
    place: Any = document
    for step in path:
        place = place[step]
    place[key] = "x"
    with pytest.raises((SchemaError, KubernetesError), match="Additional properties"):
        check(document)


def test_a_value_of_the_wrong_kind_is_refused() -> None:
    document = deepcopy(documents()["RayCluster"])
    document["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(SchemaError, match="0 is not of type 'string'"):
        check(document)


def test_versions_images_volumes_and_names_agree() -> None:
    (ray,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    assert CLUSTER["rayVersion"] in ray.specifier
    for group in GROUPS:
        pod = group["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        name, _, tag = container["image"].partition(":")
        assert name == "rllib-haml"
        assert (ROOT / f"docker/Dockerfile.{tag}").is_file()
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (tag == "gpu")
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/results"}]
        claim = volume["persistentVolumeClaim"]["claimName"]
        assert claim == documents()["PersistentVolumeClaim"]["metadata"]["name"]
    selector = documents()["RayJob"]["spec"]["clusterSelector"]
    assert selector == {"ray.io/cluster": documents()["RayCluster"]["metadata"]["name"]}


def kuberay_nodes() -> list[dict[str, float]]:
    """What the cluster's nodes tell Ray that they have: the limits of their pods and `rayStartParams`."""
    nodes = []
    for group in GROUPS:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        params = group["rayStartParams"]
        node = {"CPU": float(params.get("num-cpus", limits["cpu"])), "GPU": limits.get("nvidia.com/gpu", 0)}
        (custom,) = shlex.split(params.get("resources", "{}"))
        nodes += [node | json.loads(custom)] * group.get("replicas", 1)
    return nodes


def job() -> tuple[dict[str, Any], Experiment]:
    """The options and the experiment of the job's command."""
    program, command, *arguments = shlex.split(documents()["RayJob"]["spec"]["entrypoint"])
    assert (program, command) == ("rllib", "train")
    options = dict(train.make_context("train", arguments).params)
    assert options.pop("words") == ()
    # Where the images have the repository.
    document = read_file(ROOT / options.pop("file").removeprefix("/opt/rllib-haml/"))
    TrainOptions(**options).override(document)
    (experiment,) = parse_experiments(document, allow_eval=False)
    return options, experiment


def test_the_job_runs_a_valid_command_that_the_cluster_has_room_for() -> None:
    options, experiment = job()
    assert options["storage_path"] == "/results"
    assert options["auto_resume"], "a job that is applied again goes on"
    request = experiment.algorithm_class.default_resource_request(experiment.config.to_dict())
    assert request.required_resources == {"CPU": 6, "env_runner": 5, "GPU": 1}
    assert shortage(request.bundles, kuberay_nodes(), "it") is None
    without_gpus = [node for node in kuberay_nodes() if not node["GPU"]]
    assert shortage(request.bundles, without_gpus, "it") is not None


def test_ray_up_keeps_to_rays_schema_and_a_misspelt_field_does_not() -> None:
    validate_config(prepare_config(deepcopy(RAY_UP)))
    with pytest.raises(Exception, match="max_worker"):
        validate_config(RAY_UP | {"max_worker": 3})


def test_the_nodes_of_ray_up_can_hold_the_example() -> None:
    _, experiment = job()
    request = experiment.algorithm_class.default_resource_request(experiment.config.to_dict())
    kinds = RAY_UP["available_node_types"].values()
    assert max(kind["max_workers"] for kind in kinds) <= RAY_UP["max_workers"]
    nodes = [kind["resources"] for kind in kinds for _ in range(kind["max_workers"])]
    assert shortage(request.bundles, nodes, "it") is None
