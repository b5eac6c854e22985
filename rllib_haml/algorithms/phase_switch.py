"""When a team stops sharing one network and begins to adapt it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PLATEAU = "plateau"


@dataclass
class PhaseSwitch:
    """Decides once, from the env steps so far and the team's return.

    Attributes:
        step: Env steps after which it is time; None does not look at steps.
        patience: Iterations without a gain after which it is time; None does not look at returns.
        min_gain: What counts as a gain, as a share of the range of returns seen so far.
        done: It has been time.
        least, best: Of the returns, the best as of the last gain.
        waited: Iterations since then.
        seen: Env steps at the last return that counted.
    """

    step: int | None = None
    patience: int | None = None
    min_gain: float = 0.0
    done: bool = False
    least: float = float("inf")
    best: float = float("-inf")
    waited: int = 0
    seen: int = -1

    @classmethod
    def of(
        cls, adapters_from: Any, total_env_steps: int | None, patience: int, min_gain: float
    ) -> PhaseSwitch:
        """Reads the config's `adapters_from`.

        Raises:
            ValueError: It is no step, fraction or word; or a fraction, and there is no total.
        """
        if adapters_from is None:
            return cls()
        if adapters_from == PLATEAU:
            return cls(patience=patience, min_gain=min_gain)
        if isinstance(adapters_from, int) and not isinstance(adapters_from, bool) and adapters_from >= 0:
            return cls(step=adapters_from)
        if isinstance(adapters_from, float) and 0 <= adapters_from <= 1:
            if total_env_steps is None:
                raise ValueError(
                    f"adapters_from={adapters_from} is a fraction: say of how many env steps with "
                    f"`total_env_steps`, or give the step itself."
                )
            return cls(step=round(adapters_from * total_env_steps))
        raise ValueError(
            f"adapters_from={adapters_from!r}: expected env steps (an integer), a fraction of "
            f"`total_env_steps` between 0.0 and 1.0, 'plateau', or null for never."
        )

    def due(self, steps: int, team_return: float | None) -> bool:
        """Whether it is time now; call it once per iteration. One that gave no samples does not count."""
        if steps > self.seen:
            self.seen = steps
            by_step = self.step is not None and steps >= self.step
            self.done = by_step or self._has_stalled(team_return)
        return self.done

    def _has_stalled(self, team_return: float | None) -> bool:
        if self.patience is None or team_return is None:
            return False
        self.least = min(self.least, team_return)
        spread = max(self.best, team_return) - self.least
        if team_return > self.best + self.min_gain * spread:
            self.best, self.waited = team_return, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def get_state(self) -> dict[str, Any]:
        return asdict(self)

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`, under the rule that this one was made with."""
        for name in ("done", "least", "best", "waited"):
            setattr(self, name, state[name])
        # A checkpoint of an earlier release does not have it.
        self.seen = state.get("seen", -1)
