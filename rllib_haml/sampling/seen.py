"""What policies see where connectors of the user's change observations: its spaces, and a record of it.

RLlib's env runner shows a policy what its env-to-module pipeline makes of an episode. The learner is to read
the very same, so the pipeline gets one piece more, which notes what passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from gymnasium import spaces
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import (
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AgentToModuleMapping,
    BatchIndividualItems,
    EnvToModulePipeline,
    NumpyToTensor,
)
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.vector.sync_vector_multi_agent_env import SyncVectorMultiAgentEnv

from rllib_haml._typing import AgentID

# Under this key an episode's `custom_data` holds its `Seen`.
SEEN = "seen_by_policies"
# RLlib's own pieces that only rearrange what policies see.
_REARRANGE = (
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    AgentToModuleMapping,
    BatchIndividualItems,
    NumpyToTensor,
)


class Seen:
    """Per agent and step of its own what its policy was shown in one chunk of an episode."""

    def __init__(self) -> None:
        self._shown: dict[AgentID, dict[int, Any]] = {}

    def note(self, agent: AgentID, step: int, observation: Any) -> None:
        self._shown.setdefault(agent, {})[step] = tree.map_structure(np.array, observation)

    def of(self, agent: AgentID, steps: range) -> list[Any]:
        """Observations in `steps`. Of who ended unobserved RLlib repeats the last one; so does this."""
        shown = self._shown[agent]
        *before, last = steps
        return [shown[step] for step in before] + [shown[last] if last in shown else shown[before[-1]]]

    def __deepcopy__(self, memo: Any) -> Seen:
        """RLlib copies it into the chunk that follows, which begins with the last observations."""
        copy = Seen()
        copy._shown = {agent: dict([max(shown.items())]) for agent, shown in self._shown.items()}
        return copy


class RecordSeen(ConnectorV2):
    """Notes each observation on its way to a policy; changes nothing."""

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], episodes: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: The pieces before it gave a policy what no learner can be given, or what is not in
                the space that they declare.
        """
        if others := [column for column in batch if column != Columns.OBS]:
            raise ValueError(
                f"The env_to_module_connector adds {others[0]!r} to the batch, which policies would not find "
                f"there when they learn: put it into the observation."
            )
        declared: Any = self.input_observation_space
        for episode in episodes:
            for agent in episode.get_agents_that_stepped():
                own = episode.agent_episodes[agent]
                given = batch[Columns.OBS].get((episode.id_, agent, own.module_id), ())
                if len(given) != 1:
                    raise ValueError(
                        f"The env_to_module_connector gives the policy of agent {agent!r} {len(given)} "
                        f"observations for one step: expected one."
                    )
                if wrong := _unlike(declared[agent], given[0]):
                    raise ValueError(
                        f"The env_to_module_connector shows the policy of agent {agent!r} {wrong}: "
                        f"let `recompute_output_observation_space` of your connector tell the space of what "
                        f"it makes."
                    )
                episode.custom_data.setdefault(SEEN, Seen()).note(agent, own.t, given[0])
        return batch


def record_seen(pipeline: EnvToModulePipeline) -> None:
    """Puts a `RecordSeen` where observations are what policies will see.

    Raises:
        ValueError: There is no such place.
    """
    kinds = [type(piece) for piece in pipeline.connectors]
    first = next((i for i, kind in enumerate(kinds) if kind in _REARRANGE), len(kinds))
    last = [kind for kind in kinds[first:] if kind not in _REARRANGE]
    if last or AgentToModuleMapping not in kinds:
        raise ValueError(
            f"env_to_module_connector: what policies see cannot be recorded for the learner"
            f"{f', since {last[0].__name__} comes after RLlib has batched it' if last else ''}. Let your own "
            f"pieces come first, and leave add_default_connectors_to_env_to_module_pipeline=True."
        )
    pipeline.connectors.insert(first, RecordSeen())
    pipeline._fix_spaces(pipeline.input_observation_space, pipeline.input_action_space)


class Connected:
    """A config's env-to-module pipeline in front of one environment, to see what it will do.

    Args:
        config: A `TeamConfig` whose policies are known.
        creator: Makes the environment.

    Raises:
        ValueError: The pipeline does not fit the environment.
    """

    def __init__(self, config: Any, creator: Callable[[], Any]):
        self._config = config
        self._env: Any = SyncVectorMultiAgentEnv([creator])
        with _named():
            self._pipeline = config.build_env_to_module_connector(env=self._env, spaces=None, device="cpu")

    def spaces(self) -> dict[Any, gym.Space]:
        """Each agent's observation space, as its policy will see it.

        Raises:
            ValueError: The pieces do not declare one for each agent.
        """
        declared: Any = self._pipeline[RecordSeen][0].input_observation_space
        agents = list(self._env.single_observation_space.spaces)
        if not isinstance(declared, spaces.Dict) or set(declared.spaces) != set(agents):
            raise ValueError(
                f"env_to_module_connector: it declares the observation space {declared}, expected a Dict "
                f"with an entry for each of {agents}. RLlib's own pieces need `multi_agent=True`."
            )
        return dict(declared.spaces)

    def try_out(self) -> None:
        """Sends the first observations of an episode through the pipeline, to new policies.

        Raises:
            ValueError: That fails.
        """
        with torch.random.fork_rng(devices=[]):
            module = self._config.get_multi_rl_module_spec(inference_only=True).build()
        obs, infos = self._env.reset(seed=0)
        episode = MultiAgentEpisode(
            observation_space=self._env.single_observation_space.spaces,
            action_space=self._env.single_action_space.spaces,
            agent_to_module_mapping_fn=self._config.policy_mapping_fn,
        )
        episode.add_env_reset(observations=obs[0], infos=infos[0])
        with _named():
            self._pipeline(rl_module=module, episodes=[episode], explore=True, obs=obs, infos=infos)

    def close(self) -> None:
        self._env.close()


@contextmanager
def _named() -> Iterator[None]:
    """What goes wrong inside of connectors is said to come from there."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(("env_to", "The env_to")) else _misfit(error)) from error
    except Exception as error:
        raise ValueError(_misfit(error)) from error


def _misfit(error: Exception) -> str:
    return (
        f"env_to_module_connector: it does not fit this environment's agents, {type(error).__name__}: "
        f"{error}. (RLlib's own pieces need `multi_agent=True`.)"
    )


def _unlike(space: gym.Space, observation: Any) -> str:
    """How `observation` differs from what `space` holds, in words; or nothing."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or set(observation) != set(space.spaces):
            return f"{_outline(observation)}, but declares a Dict of {list(space.spaces)}"
        return next(filter(None, (_unlike(sub, observation[key]) for key, sub in space.items())), "")
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(space):
            return f"{_outline(observation)}, but declares a Tuple of {len(space)}"
        return next(filter(None, map(_unlike, space, observation)), "")
    if isinstance(observation, Mapping) or np.shape(observation) != (space.shape or ()):
        return f"{_outline(observation)}, but declares {space}"
    return ""


def _outline(observation: Any) -> str:
    if isinstance(observation, Mapping):
        return f"a dict of {list(observation)}"
    if isinstance(observation, tuple):
        return f"a tuple of {len(observation)}"
    return f"an array of shape {np.shape(observation)}"
