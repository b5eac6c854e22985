"""What ends sampling: an environment that misbehaves (who, where, when, what is wrong), or anything else."""

from __future__ import annotations

from typing import Any, NoReturn


class EnvRunnerError(RuntimeError):
    """What an env runner raised that is no `EnvironmentFault`; the message ends with its traceback."""


class EnvironmentFault(RuntimeError):
    """An environment broke the contract of its interface; nothing that it returned was used.

    It travels between Ray processes whole: pickling keeps the message and every attribute.

    Attributes:
        cause: What is wrong, without the place.
        environment: Name of the environment.
        method: "reset" or "step", if a call was at fault.
        sub_env: Index of the sub-environment in its env runner.
        step: Steps that this episode had taken when the fault was found; 0 is the reset.
        agent: The agent concerned.
        others: What else went wrong in the same call, in other sub-environments.
    """

    def __init__(
        self,
        cause: str,
        *,
        environment: str | None = None,
        method: str | None = None,
        sub_env: int | None = None,
        step: int | None = None,
        agent: Any = None,
    ) -> None:
        place = [
            text
            for value, text in (
                (environment, f"environment {environment}"),
                (method, f"in {method}()"),
                (sub_env, f"sub-environment {sub_env}"),
                (step, f"step {step} of its episode"),
                (agent, f"agent {agent!r}"),
            )
            if value is not None
        ]
        super().__init__(f"{', '.join(place)}: {cause}" if place else cause)
        self.cause = cause
        self.environment = environment
        self.method = method
        self.sub_env = sub_env
        self.step = step
        self.agent = agent
        self.others: tuple[EnvironmentFault, ...] = ()

    def at(self, *, environment: str, method: str | None, sub_env: int, step: int) -> EnvironmentFault:
        """The same fault with its place; `agent` stays."""
        return EnvironmentFault(
            self.cause,
            environment=environment,
            method=method,
            sub_env=sub_env,
            step=step,
            agent=self.agent,
        )


class PolicyFault(RuntimeError):
    """A policy drew an action with a log-probability that is no finite number; nothing was learnt from it."""


class RaisedWhenRead:
    """In the place of an answer that the algorithm will unpack: that raises the fault there."""

    def __init__(self, fault: EnvironmentFault):
        self._fault = fault

    def __iter__(self) -> NoReturn:
        raise self._fault
