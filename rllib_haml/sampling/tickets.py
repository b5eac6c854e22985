"""Which episodes count: the first to begin, since the first to end would be the short ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tickets:
    """Each of `number` tickets is for one episode; a sub-environment that begins one takes the next.

    Whoever finds none left idles. Which episodes count is thus settled when they begin, before anybody knows
    how long they will last.

    Args:
        number: Episodes that are asked for.
        num_envs: E. All begin at the same time.

    Attributes:
        held: (E,) each sub-environment's ticket, -1 where it has none.
        episodes: (number,) id of the episode that each ticket was spent on; "" before it has ended.
    """

    def __init__(self, number: int, num_envs: int):
        first = np.arange(num_envs)
        self.held = np.where(first < number, first, -1)
        self.episodes = [""] * number
        self._next = num_envs

    @property
    def held_by_any(self) -> bool:
        """Whether an episode that counts is still running."""
        return bool((self.held >= 0).any())

    def spent(self, rows: Sequence[int], ids: Sequence[str]) -> list[int]:
        """Takes the tickets of the sub-environments `rows`, whose episodes (`ids`, of all E) have ended.

        Returns:
            Those of `rows` that have a new one, and are to begin an episode.
        """
        for e in rows:
            if self.held[e] >= 0:
                self.episodes[self.held[e]] = ids[e]
            self.held[e] = self._next if self._next < len(self.episodes) else -1
            self._next += 1
        return [e for e in rows if self.held[e] >= 0]
