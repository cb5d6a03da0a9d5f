import json
import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.camera import se3_exp
from aether_env.sim import split_of
from training.batch_plan import BatchSettings, Planner, Position, epoch_order
from training.clip_sources import ClipSource, FolderClips, MixedClips, ShardClips, SimulatorClips
from training.clips import Clip, ClipError, check_clip, random_window
from training.dataset import ClipBatch, ClipBatches
from training.evaluation.datasets import LabelledVideo
from training.shards import write_shards

SMALL = BatchSettings(batch_size=2, num_frames=(2, 3), fps=(6.0, 12.0), sizes=((6, 8),), shuffle_shards=2, seed=3)


def make_clip(number: int, frames: int = 9, height: int = 6, width: int = 8, fps: float = 12.0) -> Clip:
    """Frame t of clip n is (n, t, anything), so that a batch tells what is in it."""
    rng = np.random.default_rng(number)
    rgb = rng.integers(256, size=(frames, height, width, 3), dtype=np.uint8)
    rgb[..., 0], rgb[..., 1] = number, np.arange(frames)[:, None, None]
    intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    return Clip(
        rgb=rgb,
        depth=rng.uniform(1, 9, rgb.shape[:3]).astype(np.float32),
        valid=rng.random(rgb.shape[:3]) < 0.9,
        moving=rng.random(rgb.shape[:3]) < 0.1,
        world_from_camera=se3_exp(rng.normal(size=(frames, 6))),
        intrinsics=np.tile(intrinsics, (frames, 1, 1)),
        fps=fps,
        name=f"clip {number}",
    )


class Numbers(ClipSource):
    """An honest source without pixels worth the name: clips that are their number."""

    def __init__(
        self,
        length: int | None,
        groups: list[int] | None = None,
        size: tuple[int, int] | None = None,
        spans: list[tuple[int, float]] | None = None,
    ):
        self.name, self.length, self._groups, self._size, self._spans = "numbers", length, groups, size, spans

    def clip(self, index, num_frames, fps, height, width, generator):
        if self._spans is not None:
            random_window(*self._spans[index], num_frames, fps, generator)
        clip = make_clip(index % 251, num_frames, height, width, fps)
        return replace(clip, name=str(index))

    def groups(self):
        return self._groups or super().groups()

    def sizes(self):
        return None if self.length is None or self._size is None else np.tile(self._size, (self.length, 1))

    def spans(self):
        return None if self._spans is None else np.array(self._spans, np.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eleven clips in four shards."""
    folder = tmp_path_factory.mktemp("dataset")
    write_shards(folder, map(make_clip, range(11)), clips_per_shard=3)
    return folder


@pytest.fixture(scope="module")
def mixed(folder) -> MixedClips:
    return MixedClips([(ShardClips(folder), 3.0), (Numbers(None), 1.0)])


def assert_batches_equal(a: ClipBatch, b: ClipBatch) -> None:
    for name, value in vars(a).items():
        same = torch.equal(value, getattr(b, name)) if torch.is_tensor(value) else value == getattr(b, name)
        assert same, name


def indices(mixed: MixedClips, config: BatchSettings, at: Position, steps: int, world: int) -> tuple[list, Position]:
    """Return (source, bucket, count, index) of every clip of `steps` batches of all processes, and where that ends."""
    planners = [Planner(mixed, config, rank, world) for rank in range(world)]
    dealt = []
    for _ in range(steps):
        ends = []
        for planner in planners:
            plan, end = planner.plan(at)
            dealt += [(deal.source, plan.bucket, deal.count, deal.index) for deal in plan.deals]
            ends.append((end, plan.wanted))
        assert len(set(ends)) == 1, "the processes must agree on sizes, frames, rate and counts"
        at = ends[0][0]
    return dealt, at


# ---------------------------------------------------------------- what is in a batch


def test_a_batch_is_the_clips_that_it_names_in_the_shapes_that_it_promises(mixed):
    for batch, _ in zip(ClipBatches(mixed, SMALL), range(12), strict=False):
        frames = batch.rgb.shape[1]
        assert frames in SMALL.num_frames and batch.fps in SMALL.fps
        shapes = {
            "rgb": ((2, frames, 3, 6, 8), torch.uint8),
            "depth": ((2, frames, 6, 8), torch.float32),
            "valid": ((2, frames, 6, 8), torch.bool),
            "moving": ((2, frames, 6, 8), torch.bool),
            "world_from_camera": ((2, frames, 4, 4), torch.float64),
            "intrinsics": ((2, frames, 3, 3), torch.float64),
        }
        assert {name: (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) for name in shapes} == shapes
        for row, name in enumerate(batch.names):
            if not name.startswith("clip"):
                continue
            truth, taken = make_clip(int(name.split()[1])), batch.rgb[row, :, 1, 0, 0].numpy()
            assert (np.diff(taken) == 12 / batch.fps).all()
            np.testing.assert_array_equal(batch.rgb[row].movedim(1, -1), truth.rgb[taken])
            np.testing.assert_array_equal(batch.valid[row], truth.valid[taken])
            np.testing.assert_array_equal(batch.moving[row], truth.moving[taken])
            np.testing.assert_array_equal(batch.world_from_camera[row], truth.world_from_camera[taken])
            known = batch.valid[row].numpy()
            np.testing.assert_allclose(batch.depth[row].numpy()[known], truth.depth[taken][known], rtol=1e-4)


def test_sources_frames_and_rates_come_as_often_as_they_should():
    mixed = MixedClips([(Numbers(None), 6.0), (Numbers(50), 3.0), (Numbers(7), 1.0)])
    planner = Planner(mixed, BatchSettings(batch_size=4, seed=1))
    at, pairs, sources, steps = planner.start(), Counter(), Counter(), 4000
    for _ in range(steps):
        plan, at = planner.plan(at)
        pairs[plan.wanted.num_frames, plan.wanted.fps] += 1
        sources.update(deal.source for deal in plan.deals)
    assert set(pairs) == {(t, f) for t in (17, 25, 33, 41) for f in (8, 10, 12, 15, 24)}
    expected = steps / 20
    chi_squared = sum((n - expected) ** 2 / expected for n in pairs.values())
    assert chi_squared < 43.8  # 19 degrees of freedom, 1 in 1000
    for source, share in enumerate((0.6, 0.3, 0.1)):
        assert abs(sources[source] - share * 4 * steps) < 4 * np.sqrt(share * (1 - share) * 4 * steps)
    assert at.drawn == tuple((sources[source],) for source in range(3))


SINTEL, SCANNET = [(50, 24.0)] * 23, [(90, 10.0)] * 40


def can_give(span: tuple[int, float], num_frames: int, fps: float) -> bool:
    """Say whether a clip has `num_frames` different frames that are nearest in time, by looking at each time."""
    frames, own_fps = span
    shown = [int(t / fps * own_fps + 0.5) for t in range(num_frames)]
    return len(set(shown)) == num_frames and shown[-1] < frames


def test_frames_and_rates_are_drawn_among_those_that_clips_have_and_from_sources_that_have_them():
    sources = [Numbers(len(spans), spans=spans) for spans in (SINTEL, SCANNET)]
    planner = Planner(MixedClips([(sources[0], 1.0), (sources[1], 3.0)]), BatchSettings(batch_size=4, seed=1))
    given_by = {pair: [can_give(spans[0], *pair) for spans in (SINTEL, SCANNET)] for pair in planner.settings.pairs}
    assert [sum(gives) for gives in zip(*given_by.values(), strict=True)] == [10, 8]
    at, drawn, steps = planner.start(), Counter(), 2000
    for _ in range(steps):
        plan, at = planner.plan(at)
        drawn.update((plan.wanted.num_frames, plan.wanted.fps, deal.source) for deal in plan.deals)
    expected = {pair: 4 * steps / sum(map(any, given_by.values())) for pair in given_by if any(given_by[pair])}
    for pair, gives in given_by.items():
        seen = [drawn[*pair, source] for source in (0, 1)]
        assert [count > 0 for count in seen] == gives
        if any(gives):
            assert abs(sum(seen) - expected[pair]) < 4 * 4 * np.sqrt(expected[pair] / 4)
        if all(gives):
            assert abs(seen[1] / sum(seen) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / sum(seen))


def test_a_mix_of_long_slow_and_short_clips_goes_on_for_ever_and_from_anywhere():
    mixed = MixedClips(
        [(Numbers(401, spans=[(50, 24.0), *[(4, 24.0)] * 400]), 1.0), (Numbers(4, spans=SCANNET[:4]), 1.0)]
    )
    config = BatchSettings(batch_size=2, sizes=((6, 8),), seed=3)
    run, batches, states = ClipBatches(mixed, config), [], []
    for _ in range(40):
        states.append(json.loads(json.dumps(run.state_dict())))
        batches.append(next(run))
    assert run.skipped["too short"] > 0
    for step in (1, 17, 39):
        other = ClipBatches(mixed, config)
        other.load_state_dict(states[step])
        assert_batches_equal(next(other), batches[step])


def test_a_bucket_whose_clips_suit_nothing_is_never_drawn_and_a_source_that_suits_nothing_is_named(caplog):
    wide, tall = [Numbers(3, size=size, spans=[(frames, 24.0)] * 3) for size, frames in (((6, 8), 9), ((8, 6), 90))]
    planner = Planner(MixedClips([(wide, 9.0), (tall, 1.0)]), BatchSettings(sizes=((6, 8), (8, 6))))
    assert "never drawn from" in caplog.text and "numbers has at most 9 frames and 24 a second" in caplog.text
    at = planner.start()
    for _ in range(50):
        plan, at = planner.plan(at)
        assert (plan.bucket, plan.deals[0].source) == (1, 1)


def test_a_clip_goes_to_the_bucket_nearest_to_its_aspect_and_weights_hold_over_all_buckets():
    wide, tall = Numbers(30, size=(48, 80)), Numbers(10, size=(90, 60))
    mixed = MixedClips([(wide, 1.0), (tall, 1.0), (Numbers(None), 2.0)])
    config = BatchSettings(batch_size=2, sizes=((64, 96), (96, 64), (64, 64)))
    dealt, _ = indices(mixed, config, Planner(mixed, config).start(), 1500, 1)
    seen = Counter((source, bucket) for source, bucket, *_ in dealt)
    assert {bucket for source, bucket in seen if source == 0} == {0}
    assert {bucket for source, bucket in seen if source == 1} == {1}
    assert all(seen[2, bucket] > 0.13 * len(dealt) for bucket in range(3))
    by_source = Counter(source for source, *_ in dealt)
    for source, share in enumerate((0.25, 0.25, 0.5)):
        assert abs(by_source[source] / len(dealt) - share) < 0.05
    endless = [index for source, _, _, index in dealt if source == 2]
    assert len(set(endless)) == len(endless), "the simulator must not show a scene again in another bucket"


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    together=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_an_epoch_deals_every_clip_once_and_keeps_blocks_of_shards_together(groups, together, seed):
    order = epoch_order(groups, together, seed, 0)
    assert sorted(order.tolist()) == list(range(sum(groups)))
    shard = np.repeat(np.arange(len(groups)), groups)[order]
    # While a block is dealt, at most `together` shards are open; a shard never comes back after its block.
    alive = [len({*shard[: i + 1]} & {*shard[i:]}) for i in range(len(shard))]
    assert max(alive) <= together


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order([5] * 6, 3, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


# ---------------------------------------------------------------- splitting


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_processes_share_an_epoch_without_overlap(world):
    mixed = MixedClips([(Numbers(84 * world, groups=[12] * 7 * world), 1.0)])
    config = replace(SMALL, batch_size=3)
    dealt, at = indices(mixed, config, Planner(mixed, config).start(), 28, world)
    assert sorted(index for *_, index in dealt) == list(range(84 * world))
    again, _ = indices(mixed, config, at, 28, world)
    assert sorted(index for *_, index in again) == list(range(84 * world))
    assert [d[3] for d in again] != [d[3] for d in dealt], "each epoch has an order of its own"


@settings(max_examples=40, deadline=None)
@given(worlds=st.lists(st.integers(1, 5), min_size=2, max_size=5), steps=st.integers(1, 6), seed=st.integers(0, 9))
def test_no_clip_is_lost_or_doubled_when_the_number_of_processes_changes(worlds, steps, seed):
    mixed = MixedClips([(Numbers(13, groups=[4, 4, 5]), 2.0), (Numbers(None), 1.0)])
    config = replace(SMALL, seed=seed)
    at, dealt = Planner(mixed, config).start(), []
    for world in worlds:
        more, at = indices(mixed, config, at, steps, world)
        dealt += more
    for source, length in ((0, 13), (1, 10**9)):
        mine = sorted((count, index) for s, _, count, index in dealt if s == source)
        assert [count for count, _ in mine] == list(range(len(mine)))
        for epoch in range(0, len(mine) // length):
            assert sorted(i for _, i in mine[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_two_processes_get_what_one_gets_in_batches_twice_as_large(mixed):
    together = ClipBatches(mixed, replace(SMALL, batch_size=4))
    pair = [ClipBatches(mixed, SMALL, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        whole, *halves = next(together), *map(next, pair)
        assert whole.names == halves[0].names + halves[1].names
        assert torch.equal(whole.rgb, torch.cat([half.rgb for half in halves]))


# ---------------------------------------------------------------- going on


def test_going_on_at_every_position_gives_the_same_batches_to_the_bit(mixed):
    run, batches, states = ClipBatches(mixed, SMALL), [], []
    for _ in range(15):  # more than an epoch
        states.append(json.loads(json.dumps(run.state_dict())))
        batches.append(next(run))
    assert len(json.dumps(states[-1])) < 300
    for step, state in enumerate(states):
        other = ClipBatches(mixed, SMALL)
        other.load_state_dict(state)
        assert_batches_equal(next(other), batches[step])
    run.load_state_dict(states[4])
    assert_batches_equal(next(run), batches[4])
    assert run.state_dict() == states[5]


def test_workers_change_neither_order_nor_state_and_the_global_generator_stays(folder):
    mixed = MixedClips([(ShardClips(folder), 1.0)])
    inline, ahead = ClipBatches(mixed, SMALL), ClipBatches(mixed, replace(SMALL, workers=2))
    before = torch.get_rng_state()
    for _ in range(5):
        assert_batches_equal(next(ahead), next(inline))
        assert ahead.state_dict() == inline.state_dict(), "what is loaded ahead does not count"
    ahead.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_is_left_to_the_run_and_its_workers_live_on(folder):
    mixed = MixedClips([(ShardClips(folder), 1.0)])
    inline, ahead = ClipBatches(mixed, SMALL), ClipBatches(mixed, replace(SMALL, workers=1, ahead=1))
    assert_batches_equal(next(ahead), next(inline))
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:  # as a terminal does it to all processes of a run
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(4):  # more than were loaded ahead
        assert_batches_equal(next(ahead), next(inline))
    ahead.close()


def test_a_state_of_other_clips_is_refused(mixed, folder):
    state = ClipBatches(mixed, SMALL).state_dict()
    for other, config in (
        (MixedClips([(ShardClips(folder), 1.0)]), SMALL),
        (mixed, replace(SMALL, seed=4)),
        (mixed, replace(SMALL, sizes=((6, 8), (8, 6)))),
    ):
        with pytest.raises(ValueError, match="state must be of the same"):
            ClipBatches(other, config).load_state_dict(state)


def test_a_batch_that_failed_is_the_next_one_again(mixed, monkeypatch):
    run, truth = ClipBatches(mixed, SMALL), ClipBatches(mixed, SMALL)
    assert_batches_equal(next(run), next(truth))
    with monkeypatch.context() as patch:
        patch.setattr(ShardClips, "clip", lambda *_: 1 / 0)
        patch.setattr(Numbers, "clip", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(run)
    assert_batches_equal(next(run), next(truth))


# ---------------------------------------------------------------- clips that cannot be used


def test_damaged_shards_are_skipped_counted_and_named_and_the_rest_is_dealt(tmp_path, caplog):
    paths = write_shards(tmp_path, map(make_clip, range(12)), clips_per_shard=4)
    content = bytearray(paths[0].read_bytes())
    content[content.index(b"world_from_camera")] ^= 1  # of the first clip: its JSON is whole, so only reading finds it
    paths[0].write_bytes(content)
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    mixed = MixedClips([(ShardClips(tmp_path), 1.0)])
    run = ClipBatches(mixed, SMALL)
    assert len(run.bad) == 1 and paths[1].name in run.bad[0] and "cut off" in run.bad[0]
    assert [record.getMessage() for record in caplog.records] == [f"left out: {run.bad[0]}"]
    length = mixed.sources[0].length
    assert length is not None and 8 <= length < 12
    names = Counter(name for _ in range(3 * length) for name in next(run).names)  # six epochs
    assert "clip 0" not in names and set(names) >= {f"clip {i}" for i in (1, 2, 3, 8, 9, 10, 11)}
    assert 6 <= run.skipped["damaged"] < 12, "once an epoch, and when it is drawn in its own place"
    assert min(names[f"clip {i}"] for i in (1, 2, 3, 8, 9, 10, 11)) >= 6
    assert len(run.bad) == 2 and paths[0].name in run.bad[1]
    assert [record.getMessage() for record in caplog.records] == [f"left out: {problem}" for problem in run.bad]
    other = ClipBatches(mixed, SMALL)
    other.load_state_dict(json.loads(json.dumps(run.state_dict())))
    assert not other.skipped, "what one process replaced is not what the others did"
    caplog.clear()
    run.tell()
    assert caplog.messages == [f"damaged: 2; clips replaced by others: {dict(run.skipped)}"]


def test_short_and_slow_clips_are_replaced_and_counted_by_reason(tmp_path):
    kinds = [make_clip(0, frames=2), make_clip(1, fps=5.0), make_clip(2), make_clip(3)]
    write_shards(tmp_path, kinds)
    run = ClipBatches(MixedClips([(ShardClips(tmp_path), 1.0)]), replace(SMALL, num_frames=(3,), fps=(12.0,)))
    names = {name for _ in range(10) for name in next(run).names}
    assert names == {"clip 2", "clip 3"}
    assert run.skipped["too short"] >= 5 and run.skipped["too slow"] >= 5


def test_a_source_that_suits_no_setting_stops_with_the_reason(tmp_path):
    write_shards(tmp_path, [make_clip(0), make_clip(1)])
    mixed = MixedClips([(ShardClips(tmp_path), 1.0)])
    with pytest.raises(
        ValueError, match="none can give 3 at 24, 17 at 24 .* at most 9 frames and 12 a second"
    ) as error:
        ClipBatches(mixed, replace(SMALL, num_frames=(3, 17), fps=(24.0,)))
    assert type(error.value) is ValueError


def test_a_source_whose_clips_are_all_damaged_stops_with_the_reason(tmp_path):
    write_shards(tmp_path, [make_clip(0), make_clip(1)])
    run = ClipBatches(MixedClips([(ShardClips(tmp_path), 1.0)]), SMALL)
    for path in tmp_path.glob("*.tar"):
        path.write_bytes(b"x" * 10_000)
    with pytest.raises(ClipError, match="100 clips in a row .*damaged"):
        next(run)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0}, {"num_frames": ()}, {"num_frames": (0,)}, {"fps": (0.0,)}, {"fps": (float("nan"),)},
        {"fps": (500.0,)}, {"sizes": ()}, {"sizes": ((0, 8),)}, {"workers": -1}, {"ahead": 0}, {"shuffle_shards": 0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


def test_impossible_mixtures_and_ranks_are_refused():
    for sources in ([], [(Numbers(3), 0.0)], [(Numbers(3), float("nan"))]):
        with pytest.raises(ValueError, match="sources"):
            MixedClips(sources)
    with pytest.raises(ValueError, match="rank"):
        ClipBatches(MixedClips([(Numbers(3), 1.0)]), SMALL, rank=2, world_size=2)


# ---------------------------------------------------------------- the sources


def test_the_simulator_gives_a_clip_the_same_alone_and_in_a_batch_and_of_training_seeds_only():
    source = SimulatorClips(seed=2, supersample=1)
    config = replace(SMALL, batch_size=3, sizes=((16, 24),))
    batch = next(ClipBatches(MixedClips([(source, 1.0)]), config))
    assert all(split_of(int(name.removeprefix("sim-"))) == "train" for name in batch.names)
    assert len(set(batch.names)) == 3
    size = batch.rgb.shape[1], batch.fps, 16, 24
    alone = check_clip(source.clip(1, *size, generator=np.random.default_rng(0)))
    assert alone.name == batch.names[1] and len(alone) == size[0]
    np.testing.assert_array_equal(alone.rgb, batch.rgb[1].movedim(1, -1).numpy())
    np.testing.assert_array_equal(alone.depth, batch.depth[1].numpy())
    with pytest.raises(ValueError, match="split 'train'"):
        SimulatorClips(seed=2**20)


def make_video(folder: Path, **changes) -> LabelledVideo:
    """Sixteen pixels high; frame t is all t."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{t:04d}.png" for t in range(12))
    for t, path in enumerate(paths):
        assert cv2.imwrite(str(path), np.full((16, 24, 3), t, np.uint8))
    clip = make_clip(0, 12, 16, 24)
    fields = {"world_from_camera": clip.world_from_camera, "intrinsics": clip.intrinsics} | changes
    return LabelledVideo(name="film", rgb_paths=paths, **fields)


def test_videos_of_the_test_sets_layouts_become_clips_with_truth_where_they_have_it(tmp_path):
    video = make_video(tmp_path)
    source = FolderClips([video], fps=24.0)
    clip = check_clip(source.clip(0, 4, 8.0, 8, 8, np.random.default_rng(0)))
    shown = clip.rgb[:, 0, 0, 0]
    assert (np.diff(shown) == 3).all() and not clip.valid.any() and clip.size == (8, 8)
    np.testing.assert_array_equal(clip.world_from_camera, video.world_from_camera[shown])
    with pytest.raises(ClipError, match="film"):
        source.clip(0, 17, 8.0, 8, 8, np.random.default_rng(0))
    video.rgb_paths[5].write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(ClipError, match="0005.png") as caught:
        source.clip(0, 12, 24.0, 8, 8, np.random.default_rng(0))
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize("name, why", [("bonn", "follows markers .* scales"), ("kitti", "come without poses")])
def test_sets_whose_layout_tells_no_camera_are_refused_with_the_reason(tmp_path, name, why):
    with pytest.raises(ValueError, match=f"'{name}': .*{why}; annotate"):
        FolderClips.open(name, tmp_path)


@pytest.mark.parametrize("lacking", ["world_from_camera", "intrinsics"])
def test_videos_without_a_camera_are_refused(tmp_path, lacking):
    with pytest.raises(ValueError, match=f"{lacking}.*annotate"):
        FolderClips([make_video(tmp_path, **{lacking: None})], fps=24.0)
