"""The configuration of LoRASA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml._typing import AgentID, NotProvided
from rllib_haml.algorithms.adapter_groups import AdapterMapping, adapter_mapping, check_groups
from rllib_haml.algorithms.happo import HAPPOConfig
from rllib_haml.algorithms.lorasa_checks import check_adapted_networks, check_lora, check_overrides
from rllib_haml.algorithms.phase_switch import PLATEAU, PhaseSwitch
from rllib_haml.algorithms.user_modules import refuse_what_cannot_be_adapted
from rllib_haml.algorithms.warm_start import check_warm_start, located
from rllib_haml.annotations import COUNT, NON_NEGATIVE, SHARE, WHOLE
from rllib_haml.learners.lorasa import LoRASALearner
from rllib_haml.learners.rank_adaptation import RankAdaptation
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.adapter_mode import AdapterMode, backbone_moves, lora_of
from rllib_haml.modules.critic import LORA
from rllib_haml.modules.leading import widest
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.sampling.team import Team

if TYPE_CHECKING:
    from typing_extensions import Self


class LoRASAConfig(HAPPOConfig):
    """Config of LoRASA; see `HAMLConfig`, and `training` for its own keys.

    The shared network is the module `backbone`, on the widest of the agents' spaces; a policy, the agent's
    adapter, bears the agent's name, or the one that `adapter_mapping_fn` gives it.
    """

    default_mapping_key: ClassVar[str] = "adapter_mapping_fn"

    def __init__(self, algo_class: type | None = None):
        from rllib_haml.algorithms.lorasa import LoRASA  # which imports this file

        super().__init__(algo_class=algo_class or LoRASA)
        self.lora: dict[str, Any] = {}
        self.critic_lora: dict[str, Any] | None = None
        self.adapters_from: int | float | str | None = PLATEAU
        self.adapter_mode: AdapterMode = "frozen"
        self.total_env_steps: int | None = None
        self.plateau_patience, self.plateau_min_gain = 20, 0.02
        self.backbone_checkpoint: str | None = None
        self.adapters_checkpoint: str | None = None
        self.new_adapters = "zero"
        self.adapt_rank: dict[str, Any] | None = None
        self.adapter_mapping_fn: AdapterMapping | str = "agent"

    def training(
        self,
        *,
        lora: dict[str, Any] | None = NotProvided,
        critic_lora: dict[str, Any] | None = NotProvided,
        adapters_from: WHOLE | SHARE | Literal["plateau"] | None = NotProvided,
        adapter_mode: AdapterMode = NotProvided,
        total_env_steps: COUNT | None = NotProvided,
        plateau_patience: COUNT = NotProvided,
        plateau_min_gain: NON_NEGATIVE = NotProvided,
        backbone_checkpoint: str | None = NotProvided,
        adapters_checkpoint: str | None = NotProvided,
        new_adapters: str = NotProvided,
        adapt_rank: dict[str, Any] | None = NotProvided,
        adapter_mapping_fn: AdapterMapping | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training configuration; other keys are `HAMLConfig`'s.

        Args:
            lora: The keys of `LoRAConfig`, named as in PEFT: `r`, `lora_alpha`, `target_modules`, ...
            critic_lora: The same keys for the critic: with the adapters begins a low-rank difference of the
                critic, whose network then rests too. None: all of the critic trains on, as in the paper.
            adapters_from: When the shared network is frozen and the adapters begin: env steps (an
                integer), a fraction of `total_env_steps` (between 0 and 1), `plateau` of the team's return,
                or None for never.
            adapter_mode: What moves from then on. `frozen`: low-rank adapters over the resting backbone
                (the paper's); `joint`: both, all at once; `alternating`: adapters and backbone by turns, an
                iteration each. Controls: `continue_shared`, the backbone alone, with a new optimizer;
                `dense_delta`, full-rank adapters of what low-rank ones would adapt; `separate`, networks
                of the agents' own that begin as copies of the backbone. `lora` says nothing in the last.
            total_env_steps: The budget that a fraction refers to.
            plateau_patience: Iterations without a gain that make a plateau.
            plateau_min_gain: What counts as a gain: so much of the range of returns seen so far.
            backbone_checkpoint: A checkpoint of this package with a shared policy (MAPPO's with
                `share_parameters: true`, or LoRASA's) to begin with, under the same `model_config`. Its
                critic and value normaliser come along where they fit; optimizers begin anew.
            adapters_checkpoint: A checkpoint of LoRASA, perhaps of another team: backbone and the adapters of
                the policies of the same names begin as they are there, and so does the critic if it sees
                states of the same size. Adapters train from the start; optimizers begin anew.
            new_adapters: What the other policies begin with: `zero`, the backbone's own; `mean` of the
                checkpoint's adapters with their spaces, as near as ranks allow; or the name of one to copy.
            adapt_rank: `{energy: 0.99, budget: null, every: 20}`: every so many iterations of the adapters
                each layer keeps the least directions that hold this share of ‖ΔW‖², of all agents together
                within a budget of trained parameters (see `RankAdaptation`). None: ranks stay.
            adapter_mapping_fn: Which adapter an agent has: `agent`, its own; `role`, that of all whose
                names are the same up to a trailing number; groups {name: [agents]}; or a function
                (agent_id, episode, **kwargs) -> name. Agents of one adapter move as one.
        """
        super().training(**kwargs)
        own = {
            "lora": lora,
            "critic_lora": critic_lora,
            "adapters_from": adapters_from,
            "adapter_mode": adapter_mode,
            "total_env_steps": total_env_steps,
            "plateau_patience": plateau_patience,
            "plateau_min_gain": plateau_min_gain,
            "backbone_checkpoint": backbone_checkpoint,
            "adapters_checkpoint": adapters_checkpoint,
            "new_adapters": new_adapters,
            "adapt_rank": adapt_rank,
            "adapter_mapping_fn": adapter_mapping_fn,
        }
        for key, value in own.items():
            if value is not NotProvided:
                setattr(self, key, located(value) if key.endswith("_checkpoint") else value)
        return self

    def make_switch(self) -> PhaseSwitch:
        """What decides when the adapters begin.

        Raises:
            ValueError: `adapters_from` is no step, fraction or word, or a fraction of nothing.
        """
        return PhaseSwitch.of(
            self.adapters_from if self.adapters_checkpoint is None else 0,
            self.total_env_steps,
            self.plateau_patience,
            self.plateau_min_gain,
        )

    def make_rank_adaptation(self) -> RankAdaptation | None:
        """What `adapt_rank` says; see `RankAdaptation.of`."""
        return RankAdaptation.of(self.adapt_rank, self.adapter_mode)

    def _check_choices(self) -> None:
        super()._check_choices()
        check_lora(self)
        self.make_switch()
        check_warm_start(self)
        self.make_rank_adaptation()
        if self.adapter_mapping_fn != "agent" and self.given_mapping() is not None:
            raise ValueError(
                "policy_mapping_fn and adapter_mapping_fn both say which adapter an agent has: give one."
            )

    def _check_networks(self, team: Team) -> None:
        """As `TeamConfig`'s.

        Raises:
            ValueError: Also if `lora` or `critic_lora` does not fit the networks that it adapts.
        """
        super()._check_networks(team)
        check_adapted_networks(self, team)

    def _check_policies(self, team: Team) -> None:
        super()._check_policies(team)
        check_overrides(self, team)

    def default_policy_mapping_fn(self) -> Callable[..., str]:
        return adapter_mapping(self.adapter_mapping_fn)

    def mapping_for(self, agents: Sequence[AgentID]) -> Callable[..., str]:
        check_groups(self.adapter_mapping_fn, agents)
        return super().mapping_for(agents)

    def resolve_team(self) -> Team:
        """As `TeamConfig`'s.

        Raises:
            ValueError: Also if one network of this package's cannot read and act for all agents.
        """
        refuse_what_cannot_be_adapted(self._rl_module_spec)
        team = super().resolve_team()
        _widest_spaces(team)
        return team

    def get_default_learner_class(self) -> type:
        return LoRASALearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=Adapter)

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        spec = super().get_multi_rl_module_spec(**kwargs)
        team = self.team or self.resolve_team()
        network = self.network_config()
        recurrent = ModelConfig.from_dict(network).is_recurrent
        adapter = {
            "lora": lora_of(self.adapter_mode, self.lora, recurrent),
            "train_backbone": backbone_moves(self.adapter_mode),
        }
        specs: Any = spec.rl_module_specs
        for name in team.members():
            specs[name].model_config = {**network, **adapter}
        spec.add_modules(
            {BACKBONE: RLModuleSpec(module_class=Actor, model_config=network, **_widest_spaces(team))}
        )
        return spec

    def critic_spec(self, team: Team, model_config: dict[str, Any]) -> RLModuleSpec:
        spec: Any = super().critic_spec(team, model_config)
        if self.critic_lora is not None:
            spec.model_config |= {LORA: self.critic_lora}
        return spec

    def own_modules(self, policies: Iterable[str]) -> list[str]:
        return [*super().own_modules(policies), BACKBONE]

    def acting_modules(self) -> list[str]:
        return [*super().acting_modules(), BACKBONE]


def _widest_spaces(team: Team) -> dict[str, Any]:
    """What the backbone reads and how it acts."""
    found = {}
    for kind in ("observation_space", "action_space"):
        try:
            found[kind] = widest(list(getattr(team, f"{kind}s").values()))
        except ValueError as error:
            raise ValueError(
                f"LoRASA shares one network among all agents, but of their {kind}s {error}: expected equal "
                f"ones, vectors (Box of rank 1), or Discrete. Make them so in the environment, or use HAPPO."
            ) from None
    return found
