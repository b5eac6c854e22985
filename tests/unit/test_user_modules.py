"""What a user's `rl_module_spec` asks for is done or refused, never left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_envs import NAMES
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from team_configs import config
from test_config_team import Twins

from rllib_haml import HAPPOConfig, IPPOConfig, LoRASAConfig, MAPPOConfig
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE
from rllib_haml.modules.critic import CRITIC


class OwnCatalog(PPOCatalog):
    """Marks what it makes."""

    made = 0

    def build_pi_head(self, framework: str) -> Any:
        OwnCatalog.made += 1
        return super().build_pi_head(framework)


class OwnActor(Actor):
    """A subclass of the default one."""


class OwnTeam(MultiRLModule):
    pass


def specs(made: Any, **rl_module: Any) -> Any:
    made.rl_module(**rl_module).validate()
    return made.get_multi_rl_module_spec().rl_module_specs


def several(**by_name: RLModuleSpec) -> MultiRLModuleSpec:
    return MultiRLModuleSpec(rl_module_specs=by_name)


def widths(built: Any) -> list[int]:
    return [layer.out_features for layer in built.network if isinstance(layer, torch.nn.Linear)][:-1]


SETTINGS: list[Any] = [{"fcnet_hiddens": [5, 6]}, DefaultModelConfig(fcnet_hiddens=[5, 6])]


@pytest.mark.parametrize("given", SETTINGS, ids=["dict", "dataclass"])
@pytest.mark.parametrize("kind", [HAPPOConfig, MAPPOConfig, IPPOConfig])
def test_settings_of_a_spec_are_those_of_model_config(kind: Any, given: Any) -> None:
    one = specs(config(kind), model_config=given)
    other = specs(config(kind), rl_module_spec=RLModuleSpec(model_config=given))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].module_class is other[name].module_class
        assert widths(one[name].build()) == widths(other[name].build()) == [5, 6]


def test_control_without_settings_networks_are_others() -> None:
    assert widths(specs(config())["scout"].build()) == [128, 128]


@pytest.mark.parametrize("given", SETTINGS, ids=["dict", "dataclass"])
def test_one_policy_can_have_a_network_of_its_own(given: Any) -> None:
    """Beside it, and under it, everyone's `model_config` holds."""
    made = specs(
        config(),
        rl_module_spec=several(scout=RLModuleSpec(model_config=given)),
        model_config=DefaultModelConfig(fcnet_activation="elu"),
    )
    assert [widths(made[name].build()) for name in ("scout", "carrier", CRITIC)] == [
        [5, 6],
        [128, 128],
        [128, 128],
    ]
    assert {made[name].model_config["fcnet_activation"] for name in NAMES} == {"elu"}


@pytest.mark.parametrize("given", [{"fcnet_hidens": [4]}, DefaultModelConfig(vf_share_layers=False)])
def test_settings_that_nobody_reads_are_refused(given: Any) -> None:
    for spec in (RLModuleSpec(model_config=given), several(scout=RLModuleSpec(model_config=given))):
        with pytest.raises(ValueError, match="model_config has no key"):
            config().rl_module(rl_module_spec=spec).validate()


@pytest.mark.parametrize("module_class", [None, DefaultPPOTorchRLModule])
def test_a_catalog_makes_the_networks_as_it_does_in_ppo(module_class: Any) -> None:
    spec = RLModuleSpec(module_class=module_class, catalog_class=OwnCatalog)
    made = specs(config(), rl_module_spec=spec)
    before = OwnCatalog.made
    built = {name: made[name].build() for name in NAMES}
    assert OwnCatalog.made == before + len(NAMES)
    assert {type(module) for module in built.values()} == {DefaultPPOTorchRLModule}
    obs = torch.zeros(2, *made["scout"].observation_space.shape)
    assert Columns.ACTION_DIST_INPUTS in built["scout"].forward_train({Columns.OBS: obs})
    theirs = PPOConfig().rl_module(rl_module_spec=RLModuleSpec(catalog_class=OwnCatalog)).rl_module_spec
    assert theirs.module_class is DefaultPPOTorchRLModule


def test_a_catalog_of_one_policy() -> None:
    made = specs(config(), rl_module_spec=several(scout=RLModuleSpec(catalog_class=OwnCatalog)))
    assert made["scout"].module_class is DefaultPPOTorchRLModule
    assert made["carrier"].module_class is Actor


def test_a_catalog_beside_a_network_that_reads_none_is_refused() -> None:
    spec = RLModuleSpec(module_class=OwnActor, catalog_class=OwnCatalog)
    for given in (spec, several(scout=spec)):
        with pytest.raises(ValueError, match=r"'scout' the catalog OwnCatalog, which OwnActor does not read"):
            config().rl_module(rl_module_spec=given).validate()


def test_a_subclass_of_the_default_network_is_built() -> None:
    made = specs(config(), rl_module_spec=RLModuleSpec(module_class=OwnActor), model_config=SETTINGS[1])
    built = made["scout"].build()
    assert type(built) is OwnActor
    assert widths(built) == [5, 6]


def lorasa() -> Any:
    return config(LoRASAConfig, Twins)


UNADAPTED: dict[str, tuple[Any, str]] = {
    "own module": (
        RLModuleSpec(module_class=DefaultPPOTorchRLModule),
        "DefaultPPOTorchRLModule .* all policies",
    ),
    "own actor": (RLModuleSpec(module_class=OwnActor), "OwnActor .* all policies"),
    "own module of one": (
        several(scout=RLModuleSpec(module_class=DefaultPPOTorchRLModule)),
        "DefaultPPOTorchRLModule .* policy 'scout'",
    ),
    "catalog": (RLModuleSpec(catalog_class=OwnCatalog), "OwnCatalog .* all policies"),
    "settings of one": (several(scout=RLModuleSpec(model_config=SETTINGS[0])), "model_config .* 'scout'"),
    "own team": (
        MultiRLModuleSpec(multi_rl_module_class=OwnTeam, rl_module_specs={}),
        "OwnTeam of rl_module",
    ),
}


@pytest.mark.parametrize("what", UNADAPTED)
def test_lorasa_names_what_it_cannot_adapt(what: str) -> None:
    spec, message = UNADAPTED[what]
    with pytest.raises(ValueError, match=rf"LoRASA cannot adapt .*{message}.*use HAPPO or MAPPO"):
        lorasa().rl_module(rl_module_spec=spec).validate()


@pytest.mark.parametrize("given", SETTINGS, ids=["dict", "dataclass"])
def test_lorasa_takes_the_settings_of_a_spec(given: Any) -> None:
    made = specs(lorasa(), rl_module_spec=RLModuleSpec(model_config=given))
    for name in (BACKBONE, CRITIC):
        assert widths(made[name].build()) == [5, 6]
    assert made["scout"].model_config["fcnet_hiddens"] == [5, 6]
