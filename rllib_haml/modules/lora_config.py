"""What `lora` in `model_config` may say: PEFT's names, and the few that a team of policies needs besides."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

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
        for key, allowed in (
            ("bias", get_args(Bias)),
            ("init_lora_weights", INITS),
            ("full_rank_policy", get_args(FullRankPolicy)),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"lora: {key}={getattr(self, key)!r}: expected one of {', '.join(map(repr, allowed))}."
                )
        for key, rank in {"r": self.r, **self.rank_pattern}.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(f"lora: rank {key}={rank!r}: expected a whole number of at least 1.")
        for key, alpha in {"lora_alpha": self.lora_alpha, **self.alpha_pattern}.items():
            if not alpha > 0:
                raise ValueError(f"lora: alpha {key}={alpha!r}: expected a number above 0.")
        for pattern in self._expressions():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lora: {pattern!r} is no regular expression: {error}.") from error

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
            ValueError: Names the unknown key and the nearest known one.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"lora has no key {key!r}. {did_you_mean(key, known)}Known keys: {', '.join(known)}."
                )
        return cls(**values)

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


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    found = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)
