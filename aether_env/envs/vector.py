"""AetherVectorEnv: many cameras in one world, moved by one batched call of the world a step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal, Self, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from aether_env.envs.core import (
    EnvCore,
    Episodes,
    Observation,
    checked_names,
    checked_seed,
    info_of,
    shown_signature,
)
from aether_env.envs.goals import GoalTask
from aether_env.envs.keeping import branches, restored, snapshot
from aether_env.world_model.promise import WorldModel

Infos = dict[str, Any]


class AetherVectorEnv(VectorEnv[Observation, Any, np.ndarray]):
    """`num_envs` times `AetherEnv` in one world: row i is what that env would be alone, with the same seed.

    Spaces, observations, infos, options and tasks are those of `AetherEnv`, batched. After an episode's end
    (terminated, or truncated after `max_episode_steps`) a row begins anew as `autoreset_mode` says:

    - "next_step" (default): at the next step, whose action for the row is ignored and whose reward is 0;
    - "same_step": at once; `infos["final_obs"]` and `infos["final_info"]` hold the end;
    - "disabled": when the caller resets it by `reset(options={"reset_mask": ...})`; a step before that raises.

    Args:
        num_envs: Rows.
        world: As in `AetherEnv`.
        max_episode_steps: Truncates episodes; None: never.
        autoreset_mode: An `AutoresetMode` or its name.
        render_mode: "rgb_array": `render` gives one picture a row.
        settings: All others of `AetherEnv`.

    Raises:
        ValueError: An argument is out of its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 3.0}
    __signature__: ClassVar[inspect.Signature]
    _goal_keys = False

    def __init__(
        self,
        num_envs: int = 1,
        world: Literal["dream", "sim"] | WorldModel = "dream",
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        _check_whole("num_envs", num_envs)
        if max_episode_steps is not None:
            _check_whole("max_episode_steps", max_episode_steps)
        mode = _mode(autoreset_mode)
        if not isinstance(render_mode, str | None) or render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array' for a vector env, got {render_mode!r}.")
        core = EnvCore(world, goal_keys=self._goal_keys, **checked_names(type(self), settings))
        self._set_up(core, int(num_envs), max_episode_steps, mode, render_mode)

    @classmethod
    def of_branches(
        cls, core: EnvCore, episodes: Episodes, row: int, generator: np.random.Generator, count: int, *, reseed: bool
    ) -> Self:
        """Return a vector env that goes on from one episode `count` times; see `AetherEnv.branch`."""
        many, generators = branches(core, episodes, row, generator, count, reseed=reseed)
        env = cls.__new__(cls)
        env._set_up(core, len(many), None, AutoresetMode.DISABLED, None)
        env._owns_core = False
        env._episodes, env._generators = many, generators
        return env

    def _set_up(
        self, core: EnvCore, num_envs: int, limit: int | None, mode: AutoresetMode, render_mode: str | None
    ) -> None:
        self.core, self.num_envs, self.max_episode_steps = core, num_envs, limit
        self.autoreset_mode, self.render_mode = mode, render_mode
        fps = core.fps / core.frames_per_step
        self.metadata = {**type(self).metadata, "render_fps": fps, "autoreset_mode": mode}
        self.single_action_space, self.single_observation_space = core.action_space, core.observation_space
        self.action_space = batch_space(core.action_space, num_envs)
        self.observation_space = batch_space(core.observation_space, num_envs)
        self._owns_core = True
        self._episodes: Episodes | None = None
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Infos]:
        """Begin episodes.

        Args:
            seed: One a row; an integer s stands for s, s + 1, ...; None leaves a row's random numbers as they are.
            options: As in `AetherEnv`, for all rows; and `reset_mask`, (num_envs,) bool: rows that begin anew (default
                all), and `each`, a dict of options for each row, over those for all.

        Returns:
            Observations, where rows that were not reset show what they see still, and infos of those that were.

        Raises:
            ValueError: An option or a seed is unusable; nothing has changed then.
        """
        self._check_open()
        rows, of_rows = self._chosen(options)
        seeds = self._seeds(seed)
        generators = list(self._generators)
        for row in rows:
            # Drawn from a copy: a reset that fails leaves no trace.
            number = seeds[row]
            generators[row] = deepcopy(generators[row]) if number is None else seeding.np_random(number)[0]
        begun, shared, own = self.core.begin([of_rows[row] for row in rows], [generators[row] for row in rows])
        episodes = begun if self._episodes is None else self._merged(self._episodes, rows, begun)
        observations = self.core.observe(episodes)
        infos = self._infos({row: info_of(index, shared, own) for index, row in enumerate(rows)})

        self._episodes, self._generators = episodes, generators
        self._ended = self._ended & ~np.isin(np.arange(self.num_envs), rows)
        return observations, infos

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Move all cameras.

        Args:
            actions: `num_envs` actions, batched.

        Returns:
            Observations, rewards (B,) float64, terminated (B,) and truncated (B,) bool, infos.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet, or, with "disabled", a row has ended.
            ValueError: An action is not usable; nothing has changed then.
        """
        episodes = self._running("step")
        each = self._actions(actions)
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise gym.error.ResetNeeded(
                f"rows {np.flatnonzero(self._ended).tolist()} have ended; reset them with options['reset_mask']."
            )
        renewed = np.flatnonzero(self._ended).tolist()
        moved = np.flatnonzero(~self._ended).tolist()
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        told: dict[int, Infos] = {}
        generators = self._generators
        if moved:
            stepped = self.core.step(
                episodes if len(moved) == self.num_envs else episodes[moved], [each[row] for row in moved]
            )
            rewards[moved], terminated[moved] = stepped.rewards, stepped.terminated
            told = {row: info_of(index, stepped.shared, stepped.own) for index, row in enumerate(moved)}
            episodes = self._merged(episodes, moved, stepped.episodes)
        truncated = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated[moved] = (episodes.steps >= self.max_episode_steps)[moved]
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            renewed, ended = np.flatnonzero(ended).tolist(), np.zeros(self.num_envs, bool)
            ends = iterate(self.observation_space, self.core.observe(episodes[renewed]))
            for row, end in zip(renewed, ends, strict=True):
                told[row] = {"final_obs": end, "final_info": told[row]}
        if renewed:
            episodes, generators, begun = self._renewed(episodes, generators, renewed)
            told |= {row: told.get(row, {}) | info for row, info in begun.items()}
        observations, infos = self.core.observe(episodes), self._infos(told)

        self._episodes, self._generators, self._ended = episodes, generators, ended
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture a row, colour beside coloured depth, (H, 2W, 3) uint8; None without a mode."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode shows nothing; make the env with render_mode='rgb_array'.")
            return None
        episodes = self._running("render")
        near = episodes.render_near.tolist()
        return tuple(self.core.picture(episodes.last, row, -1, near[row]) for row in range(self.num_envs))

    def snapshot(self, row: int) -> bytes:
        """Return all that one row is, as `AetherEnv.snapshot`; an `AetherEnv` restores it as well.

        Its count of steps, by which `max_episode_steps` truncates, is in it.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet, or the row has ended.
            ValueError: There is no such row, or it cannot be put into bytes.
        """
        episodes, row = self._running("snapshot"), self._unended(row)
        return snapshot(self.core, episodes, row, self._generators[row])

    def restore(self, row: int, data: bytes) -> Observation:
        """Let one row go on where a snapshot was taken, of this or another row, or of an `AetherEnv`.

        Returns:
            The observations of all rows.

        Raises:
            ValueError: As `AetherEnv.restore`; nothing has changed then.
        """
        episodes, row = self._running("restore"), self._row(row)
        one, generator = restored(self.core, data)
        episodes = self._merged(episodes, [row], one)
        observations = self.core.observe(episodes)
        self._episodes = episodes
        self._generators = [*self._generators[:row], generator, *self._generators[row + 1 :]]
        self._ended = self._ended & (np.arange(self.num_envs) != row)
        return observations

    def branch(self, row: int, n: int, *, reseed: bool = False) -> AetherVectorEnv:
        """Return n copies of one row that can be stepped together, as `AetherEnv.branch`.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet, or the row has ended.
            ValueError: There is no such row, n is no whole number >= 1, or the world cannot branch.
        """
        episodes, row = self._running("branch"), self._unended(row)
        return type(self).of_branches(self.core, episodes, row, self._generators[row], n, reseed=reseed)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each row."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """What the generator of each row was seeded with; -1 where it came with a snapshot."""
        seeds = [cast(np.random.SeedSequence, each.bit_generator.seed_seq).entropy for each in self._generators]
        return tuple(seed if isinstance(seed, int) else -1 for seed in seeds)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the world."""
        if self._owns_core:
            self.core.close()
        self._episodes = None

    def _check_open(self) -> None:
        # Branches are closed without the world, the world without its branches.
        if self.closed:
            raise gym.error.ClosedEnvironmentError("This env is closed; make a new one with gym.make_vec.")
        _ = self.core.world

    def _running(self, what: str) -> Episodes:
        self._check_open()
        if self._episodes is None:
            raise gym.error.ResetNeeded(f"Cannot {what} before reset: call env.reset() first.")
        return self._episodes

    def _merged(self, episodes: Episodes, rows: Sequence[int], new: Episodes) -> Episodes:
        """Return episodes with those of some rows replaced."""
        if len(rows) == self.num_envs:
            return new
        kept = [row for row in range(self.num_envs) if row not in set(rows)]
        order = np.argsort([*kept, *rows]).tolist()
        return self.core.join([episodes[kept], new], order)

    def _renewed(
        self, episodes: Episodes, generators: list[np.random.Generator], rows: list[int]
    ) -> tuple[Episodes, list[np.random.Generator], dict[int, Infos]]:
        """Return episodes and generators with new ones in some rows, and the infos of those."""
        drawn = [deepcopy(generators[row]) for row in rows]
        begun, shared, own = self.core.begin([{}] * len(rows), drawn)
        generators = list(generators)
        for row, generator in zip(rows, drawn, strict=True):
            generators[row] = generator
        told = {row: info_of(index, shared, own) for index, row in enumerate(rows)}
        return self._merged(episodes, rows, begun), generators, told

    def _infos(self, told: Mapping[int, Infos]) -> Infos:
        """Return infos of some rows in Gymnasium's form: (num_envs, ...) and a mask `_name` for each."""
        infos: Infos = {}
        for row in sorted(told):
            infos = self._add_info(infos, told[row], row)
        return infos

    def _chosen(self, options: Mapping[str, Any] | None) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the rows to reset, and the options of every row."""
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"options must be a dict or None, got {options!r}.")
        for_all = dict(options or {})
        mask, each = for_all.pop("reset_mask", None), for_all.pop("each", None)
        if each is None:
            each = [{}] * self.num_envs
        of_dicts = isinstance(each, list | tuple) and all(isinstance(row, Mapping) for row in each)
        if not of_dicts or len(each) != self.num_envs:
            raise ValueError(f"options['each'] must be a list of {self.num_envs} dicts, one a row.")
        if mask is None:
            return list(range(self.num_envs)), [for_all | dict(row) for row in each]
        of_bool = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)
        if not of_bool or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be a bool array ({self.num_envs},) with a True in it, got {mask!r}."
            )
        if self._episodes is None and not mask.all():
            raise gym.error.ResetNeeded("Cannot reset some rows before all were reset: call env.reset() first.")
        return np.flatnonzero(mask).tolist(), [for_all | dict(row) for row in each]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            return [checked_seed(seed) + row for row in range(self.num_envs)]
        seeds = list(seed) if isinstance(seed, list | tuple) else _bad_seed(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one for each of {self.num_envs} rows, got {len(seeds)}.")
        return [None if number is None else checked_seed(number) for number in seeds]

    def _actions(self, actions: Any) -> list[Any]:
        try:
            each = list(iterate(self.action_space, actions))
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"actions must be {self.num_envs} batched actions, got {actions!r}.") from error
        if len(each) != self.num_envs:
            raise ValueError(f"actions must be {self.num_envs} batched actions, got {len(each)}.")
        return each

    def _unended(self, row: int) -> int:
        row = self._row(row)
        if self._ended[row]:
            raise gym.error.ResetNeeded(f"row {row} has ended; there is nothing to go on with before it is reset.")
        return row

    def _row(self, row: int) -> int:
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < self.num_envs:
            raise ValueError(f"row must be a whole number in 0..{self.num_envs - 1}, got {row!r}.")
        return int(row)


AetherVectorEnv.__signature__ = shown_signature(AetherVectorEnv.__init__)


class AetherGoalVectorEnv(AetherVectorEnv):
    """`num_envs` times `AetherGoalEnv`."""

    _goal_keys = True

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """Return the rewards (...) for goals (..., d); see `AetherGoalEnv.compute_reward`."""
        task = self.core.task
        assert isinstance(task, GoalTask)  # checked when the env was made
        return task.compute_reward(achieved_goal, desired_goal)


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    names = {member.name.lower(): member for member in AutoresetMode} | {m.value.lower(): m for m in AutoresetMode}
    found = mode if isinstance(mode, AutoresetMode) else names.get(str(mode).lower())
    if found is None:
        choices = ", ".join(repr(member.name.lower()) for member in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {choices}, got {mode!r}.")
    return found


def _check_whole(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {number!r}.")


def _bad_seed(seed: Any) -> Any:
    raise ValueError(f"seed must be a whole number >= 0, a list of such (or None) for each row, or None, got {seed!r}.")
