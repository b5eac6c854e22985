"""The classical RLlib YAML, `{name: {run, env, stop, config, ...}}`, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

import rllib_haml
from rllib_haml.annotations import accepts, describe
from rllib_haml.config.build import Choice, choices, param_space, search_size, variants
from rllib_haml.config.check import ConfigChecker
from rllib_haml.config.document import Document, KeyPath, read_file
from rllib_haml.config.errors import did_you_mean
from rllib_haml.config.experiment import Experiment
from rllib_haml.config.legacy import Entry, translate
from rllib_haml.config.metrics import stop_criteria
from rllib_haml.config.names import NameProblem, algorithm_class, load_object
from rllib_haml.config.search import check_searches


def load_experiments(path: str | Path, allow_eval: bool = False) -> list[Experiment]:
    """Reads every experiment of a YAML file.

    Args:
        path: The file.
        allow_eval: Whether `{eval: "..."}` may execute Python.

    Raises:
        ConfigError: Lists every mistake in the file.
    """
    return parse_experiments(read_file(path), allow_eval)


def parse_experiments(document: Document, allow_eval: bool = False) -> list[Experiment]:
    """Reads every experiment of a document.

    Raises:
        ConfigError: Lists every mistake in it.
    """
    rllib_haml.register()
    specs = experiment_specs(document)
    experiments = [_ExperimentParser(name, spec, document).parse(allow_eval) for name, spec in specs.items()]
    document.raise_problems()
    return [experiment for experiment in experiments if experiment is not None]


def experiment_specs(document: Document) -> dict[str, dict[str, Any]]:
    """The raw experiments of a document: name -> {run, env, ...}.

    Raises:
        ConfigError: The document is not made of experiments.
    """
    data = document.data
    if not isinstance(data, dict) or not data:
        document.error((), "no experiment in it. Write `my_experiment: {run: HAPPO, env: ...}`.")
    elif "run" in data or "config" in data:
        document.error((), "the experiment has no name. Indent all and put `my_experiment:` on top.")
    else:
        for name, spec in data.items():
            if not isinstance(name, str) or not isinstance(spec, dict):
                document.error((name,), "expected `name: {run: ..., env: ..., config: {...}}`.")
    document.raise_problems()
    return data


_CHECKPOINT_KEYS: dict[str, Any] = {
    "checkpoint_frequency": int,
    "checkpoint_at_end": bool,
    "num_to_keep": int | None,
    "checkpoint_score_attribute": str | None,
    "checkpoint_score_order": str,
}

# Where an experiment does not say otherwise; the frequency is in iterations.
_CHECKPOINT_DEFAULTS = {"checkpoint_at_end": True, "checkpoint_frequency": 25, "num_to_keep": 3}

_LEGACY_CHECKPOINT_KEYS = {
    "checkpoint_freq": "checkpoint_frequency",
    "checkpoint_at_end": "checkpoint_at_end",
    "keep_checkpoints_num": "num_to_keep",
    "checkpoint_score_attr": "checkpoint_score_attribute",
}

_SPEC_KEYS: dict[str, Any] = {
    "run": str,
    "env": Any,
    "config": dict,
    "stop": dict,
    "num_samples": int,
    "storage_path": str,
    "local_dir": str,
    "restore": str,
    "max_failures": int,
    "time_budget_s": float,
    "tune_callbacks": list,
    "checkpoint_config": dict,
    **{old: _CHECKPOINT_KEYS[new] for old, new in _LEGACY_CHECKPOINT_KEYS.items()},
}

_SPEC_HINTS = {
    "resources_per_trial": "RLlib computes it: set `num_env_runners`, `num_learners`, ... in `config`.",
}

_AT_LEAST = {
    "num_samples": 1,
    "checkpoint_freq": 0,
    "keep_checkpoints_num": 1,
    "time_budget_s": 0,
    "checkpoint_frequency": 0,
    "num_to_keep": 1,
    "max_failures": -1,
}


class _ExperimentParser:
    """Parses one experiment; every mistake goes to the document."""

    def __init__(self, name: str, spec: dict[str, Any], document: Document) -> None:
        self._path: KeyPath = (name,)
        self._document = document
        self._raw = spec
        self._spec = self._checked(spec, _SPEC_KEYS, self._path)

    def parse(self, allow_eval: bool) -> Experiment | None:
        """The experiment, or None if there is a mistake in it."""
        found_before = len(self._document.problems)
        algorithm = self._algorithm()
        settings = self._run_settings()
        if algorithm is None:
            return None
        default = algorithm.get_default_config()
        checker = ConfigChecker(default, self._spec["run"], self._document)
        chosen = choices(self._entries(default, allow_eval), checker)
        stop = self._stop(default, chosen)
        if len(self._document.problems) > found_before:
            return None
        configs = variants(default, chosen, self._path, self._document)
        if "restore" in settings and len(self._document.problems) == found_before:
            self._check_fit(settings["restore"], algorithm, configs)
        return Experiment(
            name=self._path[0],
            algorithm=self._spec["run"],
            algorithm_class=algorithm,
            config=configs[0],
            param_space=param_space(configs[0], chosen),
            num_trials=search_size(chosen) * self._spec.get("num_samples", 1),
            stop=stop,
            spec=self._raw,
            **settings,
        )

    def _checked(self, mapping: Mapping[Any, Any], known: dict[str, Any], at: KeyPath) -> dict[str, Any]:
        """The keys of `mapping` that are known and well typed; the others are noted."""
        good = {}
        for key, value in mapping.items():
            path = (*at, key)
            if key not in known:
                self._document.error(path, f"unknown key. {_SPEC_HINTS.get(key) or did_you_mean(key, known)}")
            elif not accepts(known[key], value):
                text = f"given {value!r}, expected {describe(known[key])}."
                self._document.error(path, text)
            elif value is not None and key in _AT_LEAST and value < _AT_LEAST[key]:
                self._document.error(path, f"given {value}, expected {key} >= {_AT_LEAST[key]}.")
            else:
                good[key] = value
        return good

    def _algorithm(self) -> type[Algorithm] | None:
        if "run" not in self._raw:
            self._document.error(self._path, "`run` is missing. Write e.g. `run: HAPPO`.")
        if "run" not in self._spec:
            return None
        try:
            return algorithm_class(self._spec["run"])
        except NameProblem as problem:
            self._document.error((*self._path, "run"), str(problem))
            return None

    def _entries(self, default: AlgorithmConfig, allow_eval: bool) -> list[Entry]:
        config = self._spec.get("config", {})
        at = (*self._path, "config")
        entries = [Entry(str(key), value, (*at, key)) for key, value in config.items()]
        if "env" in self._spec and "env" in config:
            self._document.error((*at, "env"), "`env` is given twice. Delete one.")
        elif "env" in self._spec:
            entries.append(Entry("env", self._spec["env"], (*self._path, "env")))
        elif "env" not in config:
            self._document.error(self._path, "`env` is missing. Write e.g. `env: mamujoco`.")
        good = [e for e in entries if check_searches(e.value, e.path, self._document, allow_eval)]
        return translate(good, _num_learners(config, default), self._document)

    def _stop(self, default: AlgorithmConfig, chosen: list[Choice]) -> dict[str, float]:
        keys = {choice.setting.key for choice in chosen}
        return stop_criteria(
            self._spec.get("stop", {}),
            (*self._path, "stop"),
            self._document,
            own_metrics=getattr(default, "result_metrics", ()),
            reports_custom_metrics=any(k == "callbacks_class" or k[:3] == "on_" for k in keys),
        )

    def _run_settings(self) -> dict[str, Any]:
        """What of the experiment does not depend on its algorithm, as Experiment calls it."""
        keys = ("num_samples", "max_failures", "time_budget_s", "restore", "storage_path")
        settings = {key: self._spec[key] for key in keys if key in self._spec}
        if "local_dir" in self._spec:
            settings.setdefault("storage_path", self._spec["local_dir"])
        if "restore" in settings:
            self._check_checkpoint(settings["restore"])
        settings["checkpoints"] = self._checkpoints()
        settings["tune_callbacks"] = self._tune_callbacks()
        return settings

    def _check_checkpoint(self, checkpoint: str) -> None:
        from rllib_haml.checkpoints.read import CheckpointError, check_any

        if "://" in checkpoint:
            text = (
                f"given {checkpoint}, expected a directory, one that every node can read: copy it there. "
                f"(A run whose storage_path is remote goes on by --resume.)"
            )
            self._document.error((*self._path, "restore"), text)
            return
        try:
            check_any(Path(checkpoint))
        except (CheckpointError, FileNotFoundError) as error:
            self._document.error((*self._path, "restore"), str(error))

    def _check_fit(self, checkpoint: str, algorithm: type, configs: list[AlgorithmConfig]) -> None:
        from rllib_haml.algorithms.team_config import TeamConfig
        from rllib_haml.checkpoints.read import CheckpointError, check_fit

        copies = [config.copy(copy_frozen=False) for config in configs]
        teams = [copy.resolve_team() for copy in copies if isinstance(copy, TeamConfig)]
        try:
            check_fit(Path(checkpoint), algorithm, teams)
        except CheckpointError as error:
            self._document.error((*self._path, "restore"), str(error))

    def _checkpoints(self) -> dict[str, Any]:
        at = (*self._path, "checkpoint_config")
        own = self._checked(self._spec.get("checkpoint_config", {}), _CHECKPOINT_KEYS, at)
        legacy = {new: self._spec[old] for old, new in _LEGACY_CHECKPOINT_KEYS.items() if old in self._spec}
        settings = {**_CHECKPOINT_DEFAULTS, **legacy, **own}
        score = settings.get("checkpoint_score_attribute")
        if score and score.startswith("min-"):
            settings["checkpoint_score_attribute"] = score.removeprefix("min-")
            settings["checkpoint_score_order"] = "min"
        return settings

    def _tune_callbacks(self) -> list[Any]:
        callbacks = []
        for index, item in enumerate(self._spec.get("tune_callbacks", [])):
            kwargs = dict(item) if isinstance(item, dict) else {"type": item}
            try:
                callbacks.append(load_object(str(kwargs.pop("type", "")))(**kwargs))
            except (NameProblem, TypeError) as problem:
                self._document.error((*self._path, "tune_callbacks", index), str(problem))
        return callbacks


def _num_learners(config: Mapping[str, Any], default: AlgorithmConfig) -> int:
    number = config.get("num_learners", config.get("num_learner_workers", default.num_learners))
    return number if isinstance(number, int) else 1
