"""What a user's `rl_module_spec` asks for: networks of their own, catalogs, settings of one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.team import TeamModule


def as_dict(model_config: Any) -> dict[str, Any]:
    """A `model_config` as the user meant it: of a dataclass, the fields that differ from its defaults."""
    if model_config is None or isinstance(model_config, Mapping):
        return dict(model_config or {})
    defaults = asdict(type(model_config)())
    return {k: v for k, v in asdict(model_config).items() if v != defaults[k]}


def specs_by_module(given: Any) -> dict[str, RLModuleSpec]:
    """The user's specs by module, where there are several."""
    return dict(given.rl_module_specs or {}) if isinstance(given, MultiRLModuleSpec) else {}


def spec_of(given: Any, module: str) -> RLModuleSpec:
    """What the user says of one module."""
    return given if isinstance(given, RLModuleSpec) else specs_by_module(given).get(module, RLModuleSpec())


def is_default(spec: RLModuleSpec) -> bool:
    """Whether it leaves the network to this package, be it with a `model_config` of its own."""
    ours = spec.module_class is None or issubclass(spec.module_class, Actor | Adapter)
    return ours and spec.catalog_class is None


def common_settings(given: Any) -> dict[str, Any]:
    """The `model_config` of a spec that is everyone's: it says what `.rl_module(model_config=)` says."""
    return as_dict(given.model_config) if isinstance(given, RLModuleSpec) and is_default(given) else {}


def has_own_multi_rl_module(given: Any) -> bool:
    return isinstance(given, MultiRLModuleSpec) and given.multi_rl_module_class not in (
        MultiRLModule,
        TeamModule,
    )


def refuse_unread_catalog(spec: RLModuleSpec, policy: str) -> None:
    """
    Raises:
        ValueError: The spec gives this package's network a catalog, which it would not read.
    """
    kind = spec.module_class
    if spec.catalog_class is not None and kind is not None and issubclass(kind, Actor | Adapter):
        raise ValueError(
            f"rl_module_spec gives policy {policy!r} the catalog {spec.catalog_class.__name__}, which "
            f"{kind.__name__} does not read: leave module_class out for RLlib's own module, which does, or "
            f"catalog_class, and describe the network by `.rl_module(model_config=...)`."
        )


def refuse_what_cannot_be_adapted(given: Any) -> None:
    """
    Raises:
        ValueError: The spec asks for networks that LoRASA's adapters do not know.
    """
    if has_own_multi_rl_module(given):
        raise ValueError(_cannot_adapt(f"the {given.multi_rl_module_class.__name__} of rl_module_spec"))
    alone = {"all": given} if isinstance(given, RLModuleSpec) else {}
    for name, spec in (alone or specs_by_module(given)).items():
        whose = f"that rl_module_spec gives {'all policies' if alone else f'policy {name!r}'}"
        if spec.module_class not in (None, Adapter):
            raise ValueError(_cannot_adapt(f"the {spec.module_class.__name__} {whose}"))
        if spec.catalog_class is not None:
            raise ValueError(_cannot_adapt(f"a network of the {spec.catalog_class.__name__} {whose}"))
        if spec.model_config and not alone:
            raise ValueError(_cannot_adapt(f"a network of the model_config {whose}"))


def _cannot_adapt(what: str) -> str:
    return (
        f"LoRASA cannot adapt {what}: its agents share one network of this package's. Leave it out and "
        f"describe that network by `.rl_module(model_config=...)`, or use HAPPO or MAPPO, which train any "
        f"RLModule."
    )
