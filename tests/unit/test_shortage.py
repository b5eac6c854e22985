"""What nodes cannot hold is told apart from what they can, with what was asked and what there is."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from rllib_haml import HAPPOConfig
from rllib_haml.algorithms import autoscaler
from rllib_haml.algorithms.placement import actor_bundles, shortage


@pytest.mark.parametrize(
    "bundles, nodes, expected",
    [
        ([{"CPU": 1}, {"CPU": 1}], [{"CPU": 2}], None),
        ([{"CPU": 1}, {"CPU": 1}], [{"CPU": 1}, {"CPU": 1}], None),
        ([{"CPU": 0}, {}], [], None),
        ([{"CPU": 0.1}] * 10, [{"CPU": 1}], None),
        ([{"CPU": 1}, {"CPU": 3}], [{"CPU": 2}], "asks for 4 CPU, and Ray has 2 (1 node of 2 CPU)"),
        ([{"GPU": 1}], [{"CPU": 2}, {"CPU": 2}], "asks for 1 GPU, and Ray has 0 (2 nodes of 2 CPU)"),
        ([{"GPU": 2}], [{"GPU": 1}, {"GPU": 1}], "asks for 1 x 2 GPU, each on one node"),
        ([{"CPU": 2}] * 2, [{"CPU": 3}, {"CPU": 1}], "asks for 2 x 2 CPU, each on one node"),
        ([{"CPU": 1, "sampler": 1}], [{"CPU": 1}, {"sampler": 1}], "asks for 1 x 1 CPU + 1 sampler"),
        ([{"sampler": 1}], [{"CPU": 1}], """ray start --resources='{"sampler": N}'"""),
    ],
)
def test_shortages(bundles: list[Any], nodes: list[Any], expected: str | None) -> None:
    found = shortage(bundles, nodes, "a trial")
    assert found is None if expected is None else expected in str(found)


def fits(bundles: list[dict[str, int]], nodes: list[dict[str, int]]) -> bool:
    """Whether there is an assignment of bundles to nodes, by trying all."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        asked = [{"CPU": 0, "GPU": 0} for _ in nodes]
        for place, bundle in zip(places, bundles, strict=True):
            for name, amount in bundle.items():
                asked[place][name] += amount
        if all(a[name] <= node[name] for a, node in zip(asked, nodes, strict=True) for name in a):
            return True
    return False


def test_nothing_that_fits_is_ever_refused_and_equal_bundles_that_do_not_fit_always_are() -> None:
    generator = random.Random(3)
    draw = lambda most: {"CPU": generator.randint(0, most), "GPU": generator.randint(0, 2)}  # noqa: E731
    outcomes = set()
    for _ in range(300):
        nodes = [draw(4) for _ in range(3)]
        mixed = [draw(3) for _ in range(4)]
        assert not (fits(mixed, nodes) and shortage(mixed, nodes, "it")), "refused what fits"
        equal = [draw(3)] * 4
        assert fits(equal, nodes) is (shortage(equal, nodes, "it") is None)
        outcomes.add((fits(mixed, nodes), fits(equal, nodes)))
    assert len(outcomes) == 4, "both kinds of both"


def test_the_actors_ask_for_what_tune_reserves_beside_the_algorithm() -> None:
    config = (
        HAPPOConfig()
        .environment("matrix_game", env_config={"game": "climbing"})
        .env_runners(num_env_runners=3, custom_resources_per_env_runner={"sampler": 1})
        .learners(num_learners=2, num_gpus_per_learner=1)
        .evaluation(evaluation_interval=1, evaluation_num_env_runners=1)
    )
    main, *others = config.algo_class.default_resource_request(config.to_dict()).bundles
    assert main["CPU"] == 1
    positive = [{name: amount for name, amount in bundle.items() if amount} for bundle in others]
    assert actor_bundles(config) == [{"CPU": 1, "sampler": 1}] * 4 + [{"GPU": 1}] * 2 == positive


def report(**types: str) -> bytes:
    return json.dumps({"autoscaler_report": {"node_type_mapping": types}}).encode()


@pytest.mark.parametrize(
    "reports, version_2, expected",
    [
        # As Ray 2.60 writes them where nobody scales, and under `ray up`.
        ([report(ab12="node_ab12", cd34="node_cd34")], False, False),
        ([report(ab12="ray.head.default")], False, True),
        ([report(ab12="ray.head.default", cd34="cpu")], False, True),
        # A head that has just started first has no report, then one without nodes.
        ([None, b"{}", report(), report(ab12="cpu")], False, True),
        ([None], False, False),
        ([None], True, True),
    ],
)
def test_an_autoscaler_is_known_by_the_types_of_its_nodes(
    monkeypatch: pytest.MonkeyPatch, reports: list[bytes | None], version_2: bool, expected: bool
) -> None:
    coming = itertools.chain(reports, itertools.repeat(reports[-1]))
    monkeypatch.setattr(autoscaler, "is_autoscaler_v2", lambda fetch_from_server: version_2)
    monkeypatch.setattr(autoscaler, "_internal_kv_get", lambda key: next(coming))
    monkeypatch.setattr(autoscaler, "_PATIENCE_S", 1.0)
    assert autoscaler.autoscaler_is_on() is expected
