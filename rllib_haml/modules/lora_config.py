"""What `lora` in `model_config` may say: PEFT's names, and the few that a team of policies needs besides."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from rllib_haml.annotations import plain
from rllib_haml.nearest import did_you_mean

Bias = Literal["none", "all", "lora_only"]
FullRankPolicy = Literal["dense", "clip", "error"]
ALL_LINEAR = "all-linear"
INITS = ("lorasa", True, "gaussian", "orthogonal")


@dataclass(frozen=True)
class LoRAConfig:
    """Which parameters of a base network an agent adapts, and how.

    Names, defaults and matching are PEFT's (`peft.LoraConfig`): a list's names match whole module names or
    their ends after a dot, a string is a regular expression for whole names, and the keys of a pattern are
    expressions for ends of names.

    Attributes:
        r: Rank of a difference ΔW = scaling · B A.
        lora_alpha: scaling = lora_alpha / r.
        target_modules: Linear layers with such a difference.
        exclude_modules: Those of them without.
        rank_pattern: `r` of some layers.
        alpha_pattern: `lora_alpha` of some layers.
        use_rslora: scaling = lora_alpha / √r instead (Kalajdzievski 2023, arXiv 2312.03732).
        bias: Differences of biases: of none, of all, or of the targets only.
        init_lora_weights: `lorasa`: A = 0, B Kaiming, as the authors' code of LoRASA has it; True: the
            reverse, PEFT's default; `gaussian`: A normal with standard deviation 1/r, B = 0; `orthogonal`:
            neither is zero, on orthogonal halves of the rank. B A is exactly 0 under each.
        modules_to_save: Modules all of whose parameters have dense differences.
        adapt_log_std: A dense difference of every `log_std`, as the authors' code has it.
        full_rank_policy: Where r ≥ min(in, out): `dense`, a plain matrix ΔW with scaling 1, which is fewer
            parameters and the authors' way; `clip` r to min(in, out), with the scaling of the r asked for;
            or an `error`.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: list[str] | str = ALL_LINEAR
    exclude_modules: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    bias: Bias = "none"
    init_lora_weights: Literal["lorasa", "gaussian", "orthogonal"] | bool = "lorasa"
    modules_to_save: list[str] = field(default_factory=list)
    adapt_log_std: bool = True
    full_rank_policy: FullRankPolicy = "dense"

    def __post_init__(self):
        # PEFT's files have null where a key is not set.
        for key, default in _WHERE_NULL.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, default())
        self._check_kinds()
        self._check_numbers()
        for pattern in self._expressions():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lora: {pattern!r} is no regular expression: {error}.") from error

    def _check_kinds(self) -> None:
        for key, (fits, expected) in _KINDS.items():
            if not fits(getattr(self, key)):
                raise ValueError(f"lora: {key}={getattr(self, key)!r}: expected {expected}.")
        for key, allowed in (
            ("bias", get_args(Bias)),
            ("init_lora_weights", INITS),
            ("full_rank_policy", get_args(FullRankPolicy)),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"lora: {key}={getattr(self, key)!r}: expected one of {', '.join(map(repr, allowed))}."
                )

    def _check_numbers(self) -> None:
        for key, rank in {"r": self.r, **self.rank_pattern}.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(f"lora: rank {key}={rank!r}: expected a whole number of at least 1.")
        for key, alpha in {"lora_alpha": self.lora_alpha, **self.alpha_pattern}.items():
            if not _is_number(alpha) or not 0 < alpha < math.inf:
                raise ValueError(f"lora: alpha {key}={alpha!r}: expected a number above 0.")

    def _expressions(self) -> list[str]:
        whole = [names for names in (self.target_modules, self.exclude_modules) if isinstance(names, str)]
        return [*whole, *self.rank_pattern, *self.alpha_pattern]

    def rank_and_scaling(self, module: str) -> tuple[int, float]:
        """r and scaling of the layer of this name, before `full_rank_policy`."""
        r = _by_pattern(self.rank_pattern, module, self.r)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return r, alpha / (math.sqrt(r) if self.use_rslora else r)

    def alpha_of(self, scaling: float, r: int) -> float:
        """The `lora_alpha` with which rank r has this scaling."""
        return scaling * (math.sqrt(r) if self.use_rslora else r)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoRAConfig:
        """Strict: an unknown key is an error.

        Raises:
            ValueError: Names the unknown key and the nearest known one, or the value that is wrong.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"lora={values!r}: expected keys such as {{r: 8, lora_alpha: 8}}.")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"lora has no key {key!r}. {did_you_mean(key, known)}Known keys: {', '.join(known)}."
                )
        return cls(**plain(dict(values)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def matches(names: list[str] | str, module: str) -> bool:
    """PEFT's rule: a regular expression for the whole name, or a list of names and ends of names."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def exactly(module: str) -> str:
    """The key of a pattern that matches this one module."""
    return f"^{re.escape(module)}"


def matches_end(pattern: str, module: str) -> bool:
    """PEFT's rule for the keys of a pattern: an expression for the name, or for what follows a dot in it."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if matches_end(key, module)), default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_layers(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


def _is_by_layer(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


_LAYERS = "a list of layers' names, [network.1], or one regular expression for whole names"
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": (_is_layers, f"{ALL_LINEAR}, {_LAYERS}"),
    "exclude_modules": (lambda value: value is None or _is_layers(value), _LAYERS),
    "modules_to_save": (_is_names, "a list of modules' names, such as [head]"),
    "rank_pattern": (_is_by_layer, "a rank by layer, {network.1: 4}"),
    "alpha_pattern": (_is_by_layer, "a number by layer, {network.1: 4.0}"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "adapt_log_std": (lambda value: isinstance(value, bool), "true or false"),
}
_WHERE_NULL: dict[str, Callable[[], Any]] = {
    "target_modules": lambda: ALL_LINEAR,
    "modules_to_save": list,
    "rank_pattern": dict,
    "alpha_pattern": dict,
}
