"""LoRASA: one policy that all agents share, then a low-rank adapter of it for each agent.

Zhang, Kapoor, Sun 2025 (ICML, arXiv 2502.05573). First the team trains one network, all agents at once;
then the network is frozen and each agent trains its adapter. These are disjoint parameters, as HAML's
guarantee asks for, so the adapters move one after another. With `update_scheme: simultaneous` they move at
once, as in the paper's MAPPO.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ray.rllib.utils.typing import ResultDict, StateDict

from rllib_haml.algorithms.adapter_swap import check_adapters_act, load_adapter, running_adapter
from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.lorasa_config import LoRASAConfig
from rllib_haml.algorithms.warm_start import begin, missing_start, standing_alone
from rllib_haml.modules.adapter_files import export_adapter

logger = logging.getLogger("rllib_haml")

ADAPTERS_TRAIN, SWITCH = "adapters_train", "phase_switch"


class LoRASA(HAML):
    """LoRASA on RLlib. Build it with `LoRASAConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> LoRASAConfig:
        return LoRASAConfig()

    def setup(self, config: Any) -> None:
        self._switch = self.config.make_switch()
        super().setup(config)
        # A trial that Tune starts again restores a checkpoint of its own next, and needs this one no more.
        self._missing = missing_start(self.config)
        if not self._missing:
            begin(self)

    def _check_begun(self) -> None:
        """
        Raises:
            FileNotFoundError: The checkpoint to begin with is not there, and none of the run was restored.
        """
        if self._missing:
            raise FileNotFoundError(self._missing)

    def evaluate(self, *args: Any, **kwargs: Any) -> ResultDict:
        self._check_begun()
        return super().evaluate(*args, **kwargs)

    def training_step(self) -> None:
        self._check_begun()
        if not self._switch.done and self._switch.due(*self._progress()):
            on_every_learner(self, lambda learner: learner.begin_adapters())
        super().training_step()
        self.metrics.log_value(ADAPTERS_TRAIN, float(self._switch.done), window=1)

    def _progress(self) -> tuple[int, float | None]:
        """Env steps so far, and the team's return."""
        return self._env_steps(), self._team_returns.summary().get("team_return_mean")

    def save_adapter(self, policy: str, directory: str | Path) -> None:
        """Writes the adapter of `policy` as PEFT's files, as `rllib adapters export` does.

        Raises:
            ValueError: There is no adapter of this name.
        """
        export_adapter(running_adapter(self, policy), directory)

    def load_adapter(self, policy: str, directory: str | Path, *, any_backbone: bool = False) -> None:
        """Gives `policy` the adapter in `directory`; it acts from the next step on, and trains from there.

        Its optimizer starts anew. Files are those of `save_adapter` or `rllib adapters export`, made over
        this very backbone; ranks and layers may be others than here, if these can express the policy.

        Args:
            any_backbone: Also files of another backbone, over which the adapter is another policy, or of
                PEFT's own, which do not say over which they were made.

        Raises:
            FileNotFoundError: There is no adapter in `directory`.
            ValueError: There is no such policy; the files' backbone is another; this run's `lora` cannot
                express the adapter (the message says what can); or the team still shares one network.
        """
        check_adapters_act(policy, self._switch.get_state(), self.config.adapter_mode)
        load_adapter(self, policy, directory, any_backbone=any_backbone)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (config,), keywords = super().get_ctor_args_and_kwargs()
        return (config if self._missing else standing_alone(config),), keywords

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        return {**super().get_state(*args, **kwargs), SWITCH: self._switch.get_state()}

    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        if SWITCH in state:
            self._switch.set_state(state[SWITCH])
            self._missing = ""

    def cleanup(self) -> None:
        if isinstance(self.config.adapters_from, float) and not self._switch.done:
            self._warn_of_a_budget_not_spent()
        super().cleanup()

    def _warn_of_a_budget_not_spent(self) -> None:
        if steps := self._progress()[0]:
            logger.warning(
                "The run ends after %d env steps, before its adapters trained: adapters_from=%s of "
                "total_env_steps=%s is step %s. Stop it later, or set total_env_steps to what it takes.",
                steps,
                self.config.adapters_from,
                self.config.total_env_steps,
                self._switch.step,
            )
