"""Random actions are uniform over what the environment takes."""

from __future__ import annotations

import numpy as np
import pytest
import tree
from ray.tune.registry import register_env
from scipy import stats
from spaces_env import ACTIONS, SpacesEnv, choices, chosen, random_mask

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.actions import to_env_action
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.random_actions import uniform_actions

E = 4000


@pytest.mark.parametrize("name", [name for name, space in ACTIONS.items() if choices(space)])
def test_allowed_options_are_equally_frequent(name: str) -> None:
    space, rng = ACTIONS[name], np.random.default_rng(0)
    masks = [random_mask(space, rng).astype(bool) for _ in range(9)]
    mask = next(mask for mask in masks if not mask.all())
    drawn = uniform_actions(space, E, np.tile(mask, (E, 1)), rng, normalize=True)
    taken = np.array([chosen(space, tree.map_structure(lambda x, e=e: x[e], drawn)) for e in range(E)])
    start = 0
    for column, n in zip(taken.T, choices(space), strict=True):
        allowed = mask[start : start + n]
        counts = np.bincount(column, minlength=n)
        assert not counts[~allowed].any()
        assert allowed.sum() == 1 or stats.chisquare(counts[allowed]).pvalue > 1e-4
        start += n


def test_bounded_numbers_are_uniform_where_the_environment_sees_them() -> None:
    space = ACTIONS["box"]
    rng = np.random.default_rng(0)
    for normalize in (True, False):
        drawn = uniform_actions(space, E, None, rng, normalize=normalize)
        given = to_env_action(space, normalize=normalize, clip=True)(drawn)
        for d in range(2):
            scaled = (given[:, d] - space.low[d]) / (space.high[d] - space.low[d])
            assert stats.kstest(scaled, "uniform").pvalue > 1e-4
    twice = to_env_action(space, normalize=True, clip=True)(
        uniform_actions(space, E, None, rng, normalize=False)
    )
    assert stats.kstest((twice[:, 1] - 0.5) / 8.5, "uniform").pvalue < 1e-9, "control: scaled twice"


@pytest.mark.parametrize("normalize", [True, False])
def test_random_sampling_obeys_spaces_and_masks(normalize: bool) -> None:
    """The environment raises otherwise; the draws depend on the seed alone."""
    register_env("spaces", lambda config: SpacesEnv(**config))
    config = HAPPOConfig().environment("spaces", env_config={"masks": "obs"}, disable_env_checking=True)
    config.environment(normalize_actions=normalize).debugging(seed=3).validate()
    first, again = (
        JointEnvRunner(config=config).sample(num_timesteps=80, random_actions=True) for _ in range(2)
    )
    for a, b in zip(first, again, strict=True):
        tree.map_structure(np.testing.assert_array_equal, a.actions, b.actions)
