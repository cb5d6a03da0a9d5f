"""Stable-Baselines3 over a batched env: many cameras, one call of the world a step.

envs = gym.make_vec("Aether-v0", num_envs=16, autoreset_mode="same_step", depth_format="inverse_uint8", task="pose")
model = PPO("MultiInputPolicy", VecMonitor(SB3VecEnv(envs)))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from aether_env.envs.vector import AetherVectorEnv


class SB3VecEnv(VecEnv):
    """A Stable-Baselines3 VecEnv that steps all rows of an `AetherVectorEnv` together.

    Rows that end begin anew at once; their info holds "terminal_observation" and "TimeLimit.truncated".

    Args:
        envs: Made with `autoreset_mode="same_step"`; not wrapped.

    Raises:
        ValueError: It resets in another way, or is another env.
    """

    def __init__(self, envs: AetherVectorEnv):
        unwrapped = getattr(envs, "unwrapped", envs)
        if not isinstance(unwrapped, AetherVectorEnv) or envs is not unwrapped:
            raise ValueError(f"envs must be an AetherVectorEnv without wrappers, got {envs!r}.")
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"envs must be made with autoreset_mode='same_step', got {envs.autoreset_mode}: Stable-Baselines3 "
                "begins new episodes at once."
            )
        self.envs = envs
        self.render_mode = envs.render_mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: np.ndarray | None = None

    def reset(self) -> VecEnvObs:
        """Begin all episodes, with the seeds and options that were set."""
        options: dict[str, Any] = {"each": self._options} if any(self._options) else {}
        observations, infos = self.envs.reset(seed=list(self._seeds), options=options)
        self.reset_infos = self._infos(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        of_rows = self._infos(infos)
        for row in np.flatnonzero(terminated | truncated):
            begun = self.reset_infos[row] = of_rows[row]
            of_rows[row] = begun.pop("final_info") | {"terminal_observation": begun.pop("final_obs")}
        for info, cut in zip(of_rows, truncated & ~terminated, strict=True):
            info["TimeLimit.truncated"] = bool(cut)
        return observations, rewards.astype(np.float32), terminated | truncated, of_rows

    def close(self) -> None:
        """Close the env."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture a row."""
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the batched env for each of some rows."""
        return [getattr(self.envs, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the batched env; rows have none of their own."""
        if len(self._rows(indices)) != self.num_envs:
            raise ValueError(f"indices must be all rows for {attr_name!r}: one env moves them all.")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Return what a method of the batched env says, once for each of some rows."""
        said = getattr(self.envs, method_name)(*args, **kwargs)
        return [said] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return False for each of some rows."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: None | int | Iterable[int]) -> list[int]:
        return list(self._get_indices(indices))

    def _infos(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one dict a row of Gymnasium's batched infos."""
        return [
            {
                name: value[row].item() if isinstance(value[row], np.generic) else value[row]
                for name, value in infos.items()
                if not name.startswith("_") and name != "final_info" and _has(infos, name, row)
            }
            | ({"final_info": self._infos(infos["final_info"])[row]} if _has(infos, "final_info", row) else {})
            for row in range(self.num_envs)
        ]


def _has(infos: dict[str, Any], name: str, row: int) -> bool:
    return name in infos and bool(infos[f"_{name}"][row])
