"""The one thing that leaves a sampler, and how it is dealt out to learners."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tree
from ray.rllib.core.learner.training_data import TrainingData

from rllib_haml._typing import AgentID


@dataclass(frozen=True, eq=False)
class JointFragment:
    """One contiguous piece of one team's episode in one sub-environment: T joint steps.

    Row t of every agent's arrays is the same joint step. N agents, in the environment's order, are the
    keys of the dicts and the columns of `reward`. Rows of an absent agent are zeros.

    Attributes:
        obs: Per agent a tree of arrays (T+1, ...): what it saw before each step, and after the last.
        actions: Per agent a tree (T, ...) of what the policy drew, before any squash and any scaling to the
            environment's bounds.
        logp: Per agent (T,) log-probability of `actions` under the policy that sampled.
        active: Per agent (T+1,) bool: it acted in row t (would act next, in row T).
        action_mask: Per agent (T+1, n_i) bool, for agents that have one.
        state: (T+1, *S) global state, or None.
        reward: (T, N) float64 as the environment gave it.
        terminated: The team's episode ended in a terminal state after row T-1.
        truncated: It was cut there by a time limit.
        episode_id: Of the team's episode.
        env_t: First row's step in the episode.
        source: (env runner, sub-environment).
        weights_seq_no: Version of the weights that sampled.
        first_row: First row's place in the global train batch; set by the driver.
        outcome: What the episode came to beside its return, for example {"win": 1.0}; only its last piece
            has it, and only where the environment tells it.
        actor_state: Per agent with a recurrent policy its state before the first row, a tree of arrays;
            left out, it is the initial one.
    """

    obs: dict[AgentID, Any]
    actions: dict[AgentID, Any]
    logp: dict[AgentID, np.ndarray]
    active: dict[AgentID, np.ndarray]
    action_mask: dict[AgentID, np.ndarray]
    state: np.ndarray | None
    reward: np.ndarray
    terminated: bool
    truncated: bool
    episode_id: str
    env_t: int
    source: tuple[int, int]
    weights_seq_no: int
    first_row: int = 0
    outcome: dict[str, float] = field(default_factory=dict)
    actor_state: dict[AgentID, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: slice) -> JointFragment:
        return self.slice(rows)

    def slice(self, rows: slice, *, len_lookback_buffer: int | None = None) -> JointFragment:
        """The joint steps `rows`, with the observation that follows them.

        Args:
            rows: Contiguous. Only a piece that holds the last step has the end flags and the outcome.
            len_lookback_buffer: RLlib passes it; fragments have no lookback.

        Raises:
            ValueError: If `rows` skips steps, or does not begin with the first although the policies have
                states: those in between are not recorded.
        """
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"A JointFragment is contiguous: got the slice {rows}.")
        if start > 0 and self.actor_state:
            raise ValueError(
                f"The slice {rows} of a fragment with recurrent policies has no state to begin with."
            )
        stop = max(stop, start)
        at_end = start < stop == len(self)

        def cut(extra: int) -> Callable[[Any], Any]:
            return lambda x: tree.map_structure(lambda a: a[start : stop + extra], x)

        return dataclasses.replace(
            self,
            obs=cut(1)(self.obs),
            actions=cut(0)(self.actions),
            logp=cut(0)(self.logp),
            active=cut(1)(self.active),
            action_mask=cut(1)(self.action_mask),
            state=None if self.state is None else cut(1)(self.state),
            reward=cut(0)(self.reward),
            terminated=self.terminated and at_end,
            truncated=self.truncated and at_end,
            outcome=self.outcome if at_end else {},
            env_t=self.env_t + start,
            first_row=self.first_row + start,
        )

    def env_steps(self) -> int:
        return len(self)

    def agent_steps(self) -> int:
        return int(sum(active[:-1].sum() for active in self.active.values()))


def joined(pieces: Sequence[JointFragment]) -> JointFragment:
    """Consecutive pieces of one episode as one: the inverse of cutting it."""
    first, last = pieces[0], pieces[-1]
    if first is last:
        return first

    def rows(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate(parts)

    def followed(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([*(part[:-1] for part in parts[:-1]), parts[-1]])

    def join(how: Callable[..., np.ndarray], name: str) -> Any:
        return tree.map_structure(how, *(getattr(piece, name) for piece in pieces))

    sizes = {agent: mask.shape[1] for piece in pieces for agent, mask in piece.action_mask.items()}
    masks = {
        agent: [p.action_mask.get(agent, np.ones((len(p) + 1, size), bool)) for p in pieces]
        for agent, size in sizes.items()
    }
    return dataclasses.replace(
        first,
        obs=join(followed, "obs"),
        actions=join(rows, "actions"),
        logp=join(rows, "logp"),
        active=join(followed, "active"),
        action_mask={agent: followed(*parts) for agent, parts in masks.items()},
        state=None if first.state is None else join(followed, "state"),
        reward=join(rows, "reward"),
        terminated=last.terminated,
        truncated=last.truncated,
        outcome=last.outcome,
    )


def reunited(fragments: Sequence[JointFragment]) -> list[JointFragment]:
    """Pieces of one episode that follow each other as one fragment; a batch may take several rounds."""
    pieces: list[list[JointFragment]] = []
    for fragment in sorted(fragments, key=lambda f: (f.episode_id, f.env_t)):
        last = pieces[-1][-1] if pieces else fragment
        follows = (last.episode_id, last.env_t + len(last)) == (fragment.episode_id, fragment.env_t)
        if follows:
            pieces[-1].append(fragment)
        else:
            pieces.append([fragment])
    return [joined(piece) for piece in pieces]


def in_batch_order(fragments: Sequence[JointFragment]) -> list[JointFragment]:
    """Sorts by origin and stamps each fragment with its first row, whatever order they arrived in."""
    ordered = sorted(fragments, key=lambda f: (f.source, f.env_t, f.episode_id))
    starts = np.cumsum([0, *map(len, ordered)])
    return [dataclasses.replace(f, first_row=int(s)) for f, s in zip(ordered, starts, strict=False)]


@dataclass
class JointTrainingData(TrainingData):
    """Deals out whole fragments: cutting them, as RLlib does with episodes, would change advantages.

    Attributes:
        episodes: JointFragments, or None.
    """

    episodes: Any = None

    def shard(
        self, num_shards: int, len_lookback_buffer: int | None = None, **kwargs: Any
    ) -> list[tuple[TrainingData, dict[str, Any]]]:
        """The longest fragment goes to the learner with the fewest rows; a learner may get none."""
        shares: list[list[JointFragment]] = [[] for _ in range(num_shards)]
        rows = [0] * num_shards
        for fragment in sorted(self.episodes or [], key=lambda f: (-len(f), f.first_row)):
            smallest = rows.index(min(rows))
            shares[smallest].append(fragment)
            rows[smallest] += len(fragment)
        return [
            (JointTrainingData(episodes=sorted(share, key=lambda f: f.first_row)), {}) for share in shares
        ]
