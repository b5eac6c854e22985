"""A sub-environment that fails is started anew; nothing of its episode is trained on, the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_envs import LENGTH, Faulty

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.finite_fragments import check_fragments
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.restarts import FORGIVEN

E, T = 3, 25


def runner(orders: Path | None, restart: bool = True) -> JointEnvRunner:
    config: Any = HAPPOConfig().environment(Faulty, env_config={"orders": orders}).debugging(seed=3)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=E)
    config.fault_tolerance(restart_failed_sub_environments=restart).rl_module(
        model_config={"fcnet_hiddens": [4]}
    )
    config.validate()
    return JointEnvRunner(config=config, worker_index=0)


def sample(env_runner: JointEnvRunner) -> dict[int, list[JointFragment]]:
    """Fragments by sub-environment, actions without chance."""
    rows: dict[int, list[JointFragment]] = {e: [] for e in range(E)}
    for fragment in env_runner.sample(num_timesteps=E * T, explore=False):
        rows[fragment.source[1]].append(fragment)
    return rows


def pieces(fragments: list[JointFragment]) -> list[tuple[int, int, bool]]:
    return [(f.env_t, len(f), f.truncated) for f in fragments]


def counted(env_runner: JointEnvRunner, name: str) -> int:
    return int(env_runner.metrics.peek(name, default=0))


@pytest.mark.parametrize("fault", ["raise", "nan", "shape"])
def test_a_failure_costs_its_own_episode_and_no_other(fault: str, tmp_path: Path) -> None:
    sound = sample(runner(None))
    assert pieces(sound[0]) == [(0, LENGTH, True), (0, LENGTH, True), (0, 5, False)]
    faulty = runner(tmp_path)
    (tmp_path / f"{fault}@4").touch()
    found = sample(faulty)
    # Sub-environment 0 failed in its 4th step: those four are gone, 21 are left to sample.
    assert pieces(found[0]) == [(0, LENGTH, True), (0, LENGTH, True), (0, 1, False)]
    assert counted(faulty, "num_env_step_failures") == 1
    assert counted(faulty, "num_env_steps_discarded_lifetime") == 4
    assert counted(faulty, "num_env_steps_sampled_lifetime") == E * T - 4
    assert len({f.episode_id for fragments in found.values() for f in fragments}) == 9
    for e in (1, 2):
        assert pieces(found[e]) == pieces(sound[e])
        for one, other in zip(found[e], sound[e], strict=True):
            np.testing.assert_array_equal(one.obs["left"], other.obs["left"])
            np.testing.assert_array_equal(one.actions["right"], other.actions["right"])
            np.testing.assert_array_equal(one.reward, other.reward)
    check_fragments([f for fragments in found.values() for f in fragments])


def test_several_fail_in_one_step(tmp_path: Path) -> None:
    for fault in ("raise@4@a", "nan@4@b", "raise@4@c"):
        (tmp_path / fault).touch()
    found = sample(runner(tmp_path))
    assert [pieces(found[e])[-1] for e in range(E)] == [(0, 1, False)] * E


def test_the_next_batch_goes_on_where_this_one_ended(tmp_path: Path) -> None:
    faulty = runner(tmp_path)
    (tmp_path / "raise@4").touch()
    last, next_ = sample(faulty)[0][-1], sample(faulty)[0][0]
    assert next_.episode_id == last.episode_id
    assert next_.env_t == len(last)
    assert counted(faulty, "num_episodes_lifetime") == 15 - 1


def test_without_leave_the_failure_is_raised(tmp_path: Path) -> None:
    (tmp_path / "raise@4").touch()
    with pytest.raises(EnvironmentFault, match=r"sub-environment 0, step 4.*lost its licence"):
        sample(runner(tmp_path, restart=False))


def test_what_fails_for_ever_ends_the_run(tmp_path: Path) -> None:
    for number in range(FORGIVEN + 1):
        (tmp_path / f"raise@{number + 4}").touch()
    assert sample(runner(tmp_path)), "different steps of different sub-environments are forgiven"
    for number in range(4 * E * FORGIVEN):
        (tmp_path / f"raise@1@{number}").touch()
    with pytest.raises(EnvironmentFault, match="lost its licence"):
        sample(runner(tmp_path))


def test_new_sub_environments_are_seeded_by_the_runner(tmp_path: Path, monkeypatch: Any) -> None:
    seeds: list[Any] = []
    reset = Faulty.reset

    def seeded(env: Faulty, *, seed: Any = None, options: Any = None) -> Any:
        seeds.append(seed)
        return reset(env, seed=seed)

    monkeypatch.setattr(Faulty, "reset", seeded)
    for _ in range(2):
        (tmp_path / "raise@4").touch()
        sample(runner(tmp_path))
    first, again = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    assert first == again
    assert isinstance(first[E], int), "the fourth reset is that of the new one"
