"""How long the first iteration will sample, and what to set where that is long."""

from __future__ import annotations

from dataclasses import dataclass

LONG_S = 60.0
AIM_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What an experiment asks of one iteration.

    Attributes:
        copies: `num_envs_per_env_runner`.
        processes: That sample at the same time.
        batch: Env steps of one iteration.
        learners: That share it.
        makes_checkpoints: While it trains.
    """

    copies: int
    processes: int
    batch: int
    learners: int
    makes_checkpoints: bool


def first_iteration(plan: Plan, steps_per_s: float, start_s: float) -> list[str]:
    """The lines that tell it.

    Args:
        steps_per_s: Of one process.
        start_s: Seconds until its copies had been made, reset and stepped once.
    """
    rate = steps_per_s * plan.processes
    sampling_s = plan.batch / rate
    copies = f"{plan.copies} {'copies' if plan.copies > 1 else 'copy'} of its environment in one process"
    each = f", {plan.processes} processes" if plan.processes > 1 else ""
    first = (
        f"{copies}: {_rate(steps_per_s)} steps/s{each}; the first iteration samples "
        f"{plan.batch:,} steps in about {duration(start_s + sampling_s)}, then comes its update"
    )
    if start_s + sampling_s <= LONG_S:
        return [first]
    return [
        f"{first}. That is long:",
        *(f"  {advice}" for advice in _advice(plan, rate, sampling_s, start_s)),
    ]


def duration(seconds: float) -> str:
    """As `41s`, `3m20s` or `2h05m`."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes = int(seconds) // 60
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{int(seconds) % 60:02}s"


def _rate(steps_per_s: float) -> str:
    return f"{steps_per_s:,.0f}" if steps_per_s >= 10 else f"{steps_per_s:.2g}"


def _advice(plan: Plan, rate: float, sampling_s: float, start_s: float) -> list[str]:
    lines = []
    if sampling_s > AIM_S:
        size = max(plan.copies, int(float(f"{rate * AIM_S / plan.learners:.2g}")))
        lines.append(
            f"`train_batch_size_per_learner: {size}` is sampled in {duration(size * plan.learners / rate)}"
        )
        lines.append(
            f"`num_env_runners: {2 * plan.processes}` or more, one CPU each, sample at the same time"
        )
    if start_s > AIM_S and plan.copies > 1:
        lines.append(
            f"`num_envs_per_env_runner: 1` begins sooner: it took {duration(start_s)} until {plan.copies} "
            f"copies had been made and stepped once"
        )
    if not plan.makes_checkpoints:
        lines.append("`checkpoint_freq: 0` left out has a checkpoint made every ten minutes")
    return lines
