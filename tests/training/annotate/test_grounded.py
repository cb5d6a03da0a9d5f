"""Grounded masks with tiny random networks of the very classes: loading, following, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch

from training.annotate.footage import Footage
from training.annotate.grounded import (
    GroundedMasks,
    GroundedSettings,
    Sam2Frames,
    apart,
    box_of,
    load_model,
    overlap,
)

pytest.importorskip("transformers", minversion="5.0")

HEIGHT, WIDTH, SIDE = 48, 64, 128
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "person", "car", "ball")


def make_detector(folder):
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=["stage2", "stage3", "stage4"]
        ),
        text_config=BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=8, max_text_len=32, disable_custom_kernels=True,
    )  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pictures, BertTokenizerFast(vocab=str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


def make_tracker(folder):
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import (
        Sam2VideoMaskDecoderConfig,
        Sam2VideoPromptEncoderConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1] * 4, window_size_per_stage=[4] * 4,
        global_attention_blocks=[3], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=128,
            backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        ),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=128, image_size=SIDE, mask_input_channels=8),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=128, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
        ),
        image_size=SIDE, memory_attention_hidden_size=128, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16, memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_encoder_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    network = Sam2VideoModel(config)
    for layer in (network.mask_decoder.pred_obj_score_head.proj_out, network.mask_decoder.pred_obj_score_head.proj_in):
        torch.nn.init.constant_(layer.bias, 5.0)  # the thing is believed to be there
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("grounded")
    return make_detector(root / "detector"), make_tracker(root / "tracker")


def video(num_frames=5):
    rng = np.random.default_rng(0)
    shape = (num_frames, HEIGHT, WIDTH)
    return Footage(
        rgb=rng.integers(0, 255, (*shape, 3), dtype=np.uint8), depth=np.ones(shape, np.float32),
        valid=np.ones(shape, bool), frame=np.arange(num_frames), fps=10.0, name="video",
    )  # fmt: skip


def masker(folders, **settings):
    return GroundedMasks(*folders, GroundedSettings(classes=("person", "ball"), **settings))


def test_a_video_is_masked_by_networks_from_the_disk(folders):
    moving = masker(folders, box_score=0.0, every=3)(video(), np.eye(3))
    assert moving.shape == (5, HEIGHT, WIDTH) and moving.dtype == np.bool_
    assert all(0 < frame.mean() for frame in moving), "the tracker believes in its things in every frame"


def test_what_is_not_sure_enough_is_not_masked(folders):
    assert not masker(folders, box_score=1.0)(video(), np.eye(3)).any()


class Found(GroundedMasks):
    """The real tracker after a detector that is told what to find, and what the tracker says written down."""

    def __init__(self, folders, boxes, **settings):
        super().__init__(*folders, GroundedSettings(**settings))
        self.boxes, self.begun = boxes, []

    def _detect(self, rgb_HW3):
        return [np.array(box, np.float32) for box in self.boxes]

    def _follow(self, rgb_THW3, row, boxes):
        self.begun.append((row, len(boxes)))
        yield from super()._follow(rgb_THW3, row, boxes)


class Still(Found):
    """A tracker whose things stay in their boxes, so that what is known is known."""

    def _follow(self, rgb_THW3, row, boxes):
        self.begun.append((row, len(boxes)))
        masks = np.zeros((len(boxes), HEIGHT, WIDTH), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, np.array(boxes, int), strict=True):
            mask[y0:y1, x0:x1] = True
        yield from ((frame, masks) for frame in range(len(rgb_THW3)))


def test_a_thing_found_in_one_look_is_followed_to_both_ends_of_the_video(folders):
    found = Found(folders, [(10, 10, 30, 30)], every=10)
    footage = video()
    frames = [frame for frame, _ in found._follow(footage.rgb, 2, [np.array([10, 10, 30, 30], np.float32)])]
    assert sorted(set(frames)) == [0, 1, 2, 3, 4]


def test_a_thing_that_is_followed_is_not_begun_again(folders):
    still = Still(folders, [(10, 10, 30, 30), (11, 10, 30, 30), (40, 20, 60, 40)], every=2)
    moving = still(video(), np.eye(3))
    assert still.begun == [(0, 2)], "the second box is the first thing again, and later looks find nothing new"
    assert moving[:, 10:30, 10:30].all() and moving[:, 20:40, 40:60].all() and moving.mean() < 0.3


def test_frames_are_as_the_processor_of_the_tracker_makes_them():
    flat = np.full((1, 6, 8, 3), 128, np.uint8)
    frame = Sam2Frames(flat, 16)[0]
    assert frame.shape == (3, 16, 16)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(frame.mean((1, 2)), expected, rtol=1e-5)


def test_prompts_are_in_the_pixels_that_the_tracker_looks_at(folders):
    found = Found(folders, [])
    session = found._session(video().rgb, 1, [np.array([32, 24, 64, 48], np.float32)])
    prompt = session.point_inputs_per_obj[0][1]
    assert prompt["point_coords"].flatten().tolist() == [SIDE / 2, SIDE / 2, SIDE, SIDE]


def test_boxes_apart_are_those_that_share_little():
    a, b, c = np.array([0, 0, 10, 10.0]), np.array([0, 0, 10, 12.0]), np.array([0, 8, 10, 18.0])
    assert overlap(a, b) == pytest.approx(10 / 12) and overlap(a, c) == pytest.approx(20 / 180)
    kept = apart([b, c], [a], 0.5)
    assert len(kept) == 1 and kept[0] is c


def test_the_box_of_a_mask_holds_it_and_no_more():
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:9] = True
    assert box_of(mask).tolist() == [3, 2, 9, 5]


def test_a_folder_with_another_model_is_refused(folders):
    with pytest.raises(ValueError, match="must hold a Sam2VideoModel.*'grounding-dino'"):
        GroundedMasks(folders[0], folders[0])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fetch the model, or"):
        GroundedMasks(tmp_path / "none", tmp_path / "none")


def test_weights_that_are_not_whole_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folders[1] / "model.safetensors")
    lost = "memory_encoder.projection.weight"
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folders[1] / "config.json").read_text())
    with pytest.raises(ValueError, match=f"lack {lost}"):
        load_model("Sam2VideoModel", "sam2_video", tmp_path)


def test_pickled_weights_are_not_opened(folders, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2_video"}))
    with pytest.raises(ValueError, match="as safetensors"):
        load_model("Sam2VideoModel", "sam2_video", tmp_path)


def test_without_transformers_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install 'transformers"):
        GroundedMasks(tmp_path, tmp_path)


@pytest.mark.parametrize("change", [{"classes": ()}, {"classes": ("a. b",)}, {"every": 0}, {"same": 0.0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        GroundedSettings(**change)
