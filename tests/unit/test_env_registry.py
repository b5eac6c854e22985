"""Environments by name and by path, and SuperSuit wrappers from YAML."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_haml.envs import extras
from rllib_haml.envs.registry import OWN, register_envs, resolve_env
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv

CONFIGS = {
    "mamujoco": {"scenario": "HalfCheetah", "agent_conf": "2x3"},
    "mpe": {"scenario": "spread", "continuous_actions": True},
    "smax": {"scenario": "3m"},
    "smac": {"map_name": "3m"},
    "smacv2": {"race": "zerg"},
    "rware": {"task": "tiny-2ag"},
    "lbf": {"task": "8x8-2p-2f-coop"},
    "job_shop": {"plant": "workshop"},
    "matrix_game": {"game": "climbing"},
    "differential_game": {"game": "gaussian_product"},
}
# What an environment needs beyond the extras that the tests need.
PACKAGES = {"smax": "jaxmarl", "smac": "smac", "smacv2": "smacv2"}


@pytest.mark.parametrize("name", OWN)
def test_own_environments_are_registered_once_or_often(name):
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    register_envs()
    register_envs()
    creator = _global_registry.get(ENV_CREATOR, name)
    env = creator(CONFIGS[name])
    assert isinstance(env, MultiAgentEnv)
    obs, _ = env.reset(seed=0)
    assert list(obs) == [agent for agent in env.possible_agents if agent in obs] != []
    # StarCraft cannot be saved.
    has_state = make_vector_team_env(lambda: resolve_env(name)(CONFIGS[name]), 2).has_state
    assert has_state != name.startswith("smac")


LAZY_AND_QUIET = """
import sys
from rllib_haml.envs.registry import register_envs, resolve_env
register_envs()
optional = ("mujoco", "gymnasium_robotics", "mpe2", "supersuit", "pygame")
print([module for module in optional if module in sys.modules])
resolve_env("mamujoco")({}).reset(seed=0)
resolve_env("mpe")({}).reset(seed=0)
"""


def test_registration_loads_no_optional_environment_and_none_chatters(tmp_path):
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LAZY_AND_QUIET],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    for word in ("AdroitHand", "settotalmass", "pygame"):
        assert word not in done.stderr
    assert list(tmp_path.iterdir()) == []  # MuJoCo would write its log where the user stands


@pytest.mark.parametrize("separator", [":", "."])
@pytest.mark.parametrize("name", ["ScriptedMultiAgentEnv", "ScriptedParallelEnv"])
def test_import_paths(name, separator):
    env = resolve_env(f"fake_envs{separator}{name}")({"length": 3})
    inner = env.par_env if isinstance(env, ParallelTeamEnv) else env
    assert inner.script.length == 3
    assert type(inner).__name__ == name


def from_config(env_config):
    return ScriptedParallelEnv(length=env_config.get("length", 4))


def from_keywords(length=4, end="truncated"):
    return ScriptedMultiAgentEnv(length=length, end=end)


def makes_nothing():
    return 42


@pytest.mark.parametrize("length", [4, 9])
@pytest.mark.parametrize("name", ["from_config", "from_keywords"])
def test_functions_in_both_conventions(name, length):
    env = resolve_env(f"{__name__}:{name}")({"length": length} if length != 4 else {})
    assert getattr(env, "par_env", env).script.length == length


def test_functions_of_one_argument_get_rllibs_context():
    def creator(context):
        return ScriptedMultiAgentEnv(length=context.worker_index)

    assert resolve_env(creator)(EnvContext({}, worker_index=7)).script.length == 7


def test_registered_names_of_others_are_found():
    register_env("somebodys_env", lambda config: ScriptedMultiAgentEnv(**config))
    assert resolve_env("somebodys_env")({"length": 7}).script.length == 7


@pytest.mark.parametrize(
    "name, words",
    [
        ("mamujocco", "Did you mean 'mamujoco'"),
        ("no_such_module.thing:Env", "no_such_module"),
        ("fake_envs:ScriptedEnv", "no class or function 'ScriptedEnv'"),
        ("fake_envs:NAMES", "no class or function"),
    ],
)
def test_unknown_environments(name, words):
    with pytest.raises(ValueError, match=words):
        resolve_env(name)


def test_wrong_env_config():
    with pytest.raises(TypeError, match="did you mean 'length' instead of 'lenght'"):
        resolve_env(f"{__name__}:from_keywords")({"lenght": 3, "end": "both"})
    with pytest.raises(TypeError, match="made a int; expected an RLlib MultiAgentEnv"):
        resolve_env(f"{__name__}:makes_nothing")({})


def test_missing_extra_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "rllib-haml\[mpe\]"'):
        extras.import_extra("mpe2.simple_spread_v3", extra="mpe")


def with_wrappers(*wrappers, name="mpe", **config):
    return resolve_env(name)({**CONFIGS.get(name, {}), **config, "wrappers": list(wrappers)})


def test_wrappers_are_applied_in_order():
    env = with_wrappers({"frame_stack_v1": 4}, "agent_indicator_v0")
    assert env.observation_spaces["agent_0"].shape == (18 * 4 + 3,)
    env = with_wrappers("agent_indicator_v0", {"frame_stack_v1": {"stack_size": 4}})
    assert env.observation_spaces["agent_0"].shape == ((18 + 3) * 4,)
    obs, _ = env.reset(seed=0)
    assert obs["agent_1"].dtype == np.float32
    env = with_wrappers({"clip_reward_v0": [-0.5, 0.0]})
    env.reset(seed=0)
    for _ in range(3):
        rewards = env.step({a: env.action_spaces[a].sample() for a in env.agents})[1]
    assert set(rewards.values()) == {-0.5}


def test_wrapped_environments_run_in_both_samplers():
    vec = make_vector_team_env(
        lambda: with_wrappers({"frame_stack_v1": 2}, name="mamujoco", max_episode_steps=4), 2
    )
    assert not vec.has_state  # the stack would be lost
    out = vec.reset([0, 1], [0, 0])
    assert out.state.shape == (2, 17)
    act = {agent: np.zeros((2, 3), np.float32) for agent in vec.agents}
    for _ in range(4):
        out = vec.step(act)
    assert out.truncated.all()


@pytest.mark.parametrize(
    "wrapper, words",
    [
        ("black_death_v3", "one step late.*become inactive"),
        ("pad_action_space_v0", "without a mask.*own action spaces"),
        ({"frame_stak_v1": 4}, "Did you mean 'frame_stack_v1'"),
        ("concat_vec_envs_v1", "unknown SuperSuit wrapper"),
        ({"a": 1, "b": 2}, "expected a name or one"),
        ({"frame_stack_v1": "four"}, "cannot be applied"),
    ],
)
def test_wrappers_that_are_refused(wrapper, words):
    with pytest.raises(ValueError, match=words):
        with_wrappers(wrapper)


def test_wrappers_need_a_pettingzoo_environment():
    creator = resolve_env(f"{__name__}:from_keywords")
    with pytest.raises(ValueError, match=r"need a PettingZoo ParallelEnv.*ScriptedMultiAgentEnv"):
        creator({"wrappers": ["agent_indicator_v0"]})
