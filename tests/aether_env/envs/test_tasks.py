import numpy as np
import pytest

from aether_env.envs.tasks import Explore, Judgement, Moment, Opening, Task
from tests.rooms import BoxRoom, Start


def opening() -> Opening:
    _, frames = BoxRoom(16, 24).start([Start()], [0])
    return Opening(frames=frames, options={}, np_random=np.random.default_rng(0))


def moment(distance: float) -> Moment:
    """The camera stands before a wall."""
    frames = opening().frames
    frames.depth[:] = distance
    return Moment(frames=frames, collided=False, moved=0.0)


class NearWalls(Task):
    def start(self, opening):
        return 0, {"nearest": float(opening.frames.depth.min())}

    def judge(self, state, moment):
        near = bool(moment.frames.depth[0, -1].min() < 1.0)
        return state + near, Judgement(reward=float(near), terminated=state + near == 2)


def test_exploring_gives_nothing_and_never_ends():
    state, info = Explore().start(opening())
    assert info == {} and Explore().observation_space(16, 24, 100.0) == {}
    for _ in range(3):
        state, judgement = Explore().judge(state, moment(0.1))
        assert (judgement.reward, judgement.terminated, dict(judgement.info)) == (0.0, False, {})
    assert Explore().observe(state, opening().frames) == {}


def test_a_task_of_ones_own_overrides_what_it_needs_and_inherits_the_rest():
    task = NearWalls()
    state, info = task.start(opening())
    assert info["nearest"] == pytest.approx(2.5 / (7.5 / 12))  # the floor, 2.5 m below, in the lowest row
    given = []
    for distance in (0.5, 3.0, 0.5):
        state, judgement = task.judge(state, moment(distance))
        given.append((judgement.reward, judgement.terminated))
    assert given == [(1.0, False), (0.0, False), (1.0, True)]
    assert task.options == frozenset() and task.observation_space(16, 24, 100.0) == {}


def test_what_a_caller_puts_into_one_judgements_info_is_not_in_the_next():
    Judgement().info["mine"] = 1  # type: ignore[index]
    assert Judgement().info == {}
