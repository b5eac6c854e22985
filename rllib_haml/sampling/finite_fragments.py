"""The check that no NaN or infinity reaches the update, whichever sampler it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tree

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault, PolicyFault
from rllib_haml.sampling.finite import all_finite
from rllib_haml.sampling.fragment import JointFragment


def check_fragments(fragments: Sequence[JointFragment], environment: str | None = None) -> None:
    """Raises if a reward, an observation, the state or a log-probability is NaN or infinite.

    RLlib's own env runner and a user's do not look at what environments give them.

    Raises:
        EnvironmentFault: It names agent, step of the episode and entry.
        PolicyFault: The environment gave numbers, and a policy made of them what is none.
    """
    for fragment in fragments:
        for what, agent, array in _given(fragment):
            if not all_finite(array):
                row, *entry = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
                cause = f"the {what}{''.join(f'[{i}]' for i in entry)} is {array[(row, *entry)]}"
                raise EnvironmentFault(cause, environment=environment, step=fragment.env_t + row, agent=agent)
    # The policies are to blame only once all that they saw is known to be finite.
    for fragment in fragments:
        for agent, logp in fragment.logp.items():
            if not all_finite(logp):
                row = int(np.argmin(np.isfinite(logp)))
                raise PolicyFault(
                    f"The policy of agent {agent!r} drew an action of log-probability {logp[row]} in step "
                    f"{fragment.env_t + row} of an episode: what its network puts out is not finite, what it "
                    f"sees is. Go on from an earlier checkpoint, with a smaller lr."
                )


def _given(fragment: JointFragment) -> Iterator[tuple[str, AgentID, Any]]:
    """What the environment gave."""
    for agent, column in zip(fragment.obs, fragment.reward.T, strict=True):
        yield "reward", agent, column
    for agent, obs in fragment.obs.items():
        for path, leaf in tree.flatten_with_path(obs):
            yield "observation" + "".join(f"[{key!r}]" for key in path), agent, leaf
    if fragment.state is not None:
        yield "state", None, fragment.state
