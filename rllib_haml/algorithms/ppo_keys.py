"""What became of each key of `PPOConfig.training()`: the same, a meaning of its own, or refused."""

from __future__ import annotations

from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """A key that HAML does not take.

    Attributes:
        neutral: Values that say nothing, and so are accepted.
        instead: What to write.
    """

    neutral: tuple[Any, ...]
    instead: str


SAME = frozenset(
    {
        "gamma",
        "lambda_",
        "clip_param",
        "entropy_coeff",
        "grad_clip",
        "vf_loss_coeff",
        "train_batch_size_per_learner",
        "learner_config_dict",
    }
)

OWN_MEANING: dict[str, str] = {
    "lr": "the policies'; the critic has `critic_lr`",
    "num_epochs": "passes of each policy's own step over the batch; the critic has `critic_num_epochs`",
    "minibatch_size": (
        "joint steps (not agent steps) of a minibatch over all learners; null, the default, is the whole "
        "batch; the critic has `critic_minibatch_size`"
    ),
    "vf_clip_param": (
        "how far a value may move from its old one, on the value normaliser's scale; null does not clip. "
        "(In RLlib it bounds the squared error.)"
    ),
    "learner_class": "a subclass of `OnPolicyTeamLearner`",
    "train_batch_size": "read only where `train_batch_size_per_learner` is not set",
}

_DRIFT = "a penalty on leaving the old policy is a drift: HAPPO clips (`clip_param`)"
_SCHEDULE = "write the schedule into {0} itself: `{0}: [[0, 0.01], [1000000, 0.0]]`"

REFUSED: dict[str, Refusal] = {
    "use_critic": Refusal((True,), "the team's advantage needs the centralised critic: leave it out"),
    "use_gae": Refusal((True,), "advantages are GAE's: `lambda_: 1.0` gives the plain returns"),
    "use_kl_loss": Refusal((False,), _DRIFT),
    "kl_coeff": Refusal((0, 0.0, None), _DRIFT),
    "kl_target": Refusal((None,), _DRIFT),
    "entropy_coeff_schedule": Refusal((None,), _SCHEDULE.format("entropy_coeff")),
    "lr_schedule": Refusal((None,), _SCHEDULE.format("lr")),
    "vf_share_layers": Refusal(
        (False, -1), "the critic sees the team's state, it shares nothing with an actor"
    ),
    "grad_clip_by": Refusal(("global_norm",), "`grad_clip` bounds each module's global norm"),
    "shuffle_batch_per_epoch": Refusal(
        (True,), "every epoch draws a permutation of its own; `minibatch_size: null` has nothing to shuffle"
    ),
    "model": Refusal((), "use `.rl_module(model_config={...})`, in YAML `model_config:`"),
    "optimizer": Refusal(({},), "use `lr`, `critic_lr`, `adam_epsilon` and `weight_decay`"),
    "num_sgd_iter": Refusal((None,), "use `num_epochs`"),
    "num_aggregator_actors_per_learner": Refusal((0,), "fragments go to the learners whole: leave it out"),
    "max_requests_in_flight_per_aggregator_actor": Refusal((3,), "there are no aggregator actors"),
    "max_requests_in_flight_per_sampler_worker": Refusal(
        (), "an env runner answers one request before it gets another"
    ),
    "learner_connector": Refusal(
        (None,),
        "the update reads joint fragments, which the stock connectors cannot: change observations by "
        "env_to_module_connector, rewards in the environment",
    ),
    "add_default_connectors_to_learner_pipeline": Refusal(
        (True,), "the learner's one connector makes the joint batch: leave it out"
    ),
}


def refuse(key: str, value: Any) -> None:
    """Raises a ValueError that says what to write instead, if `key: value` is refused."""
    if key in REFUSED and not any(value is n or value == n for n in REFUSED[key].neutral):
        raise ValueError(f"HAML does not take {key}={value!r}: {REFUSED[key].instead}.")
