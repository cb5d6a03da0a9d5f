"""Masks of things that may move, by their names: Grounding DINO finds them, SAM 2 follows them through the video.

Both run through transformers, from folders that the user has: nothing is fetched, and nothing is unpickled. Untested on
real weights: none come with this package, and the tests run the very classes with tiny random ones.

What is named is masked also while it rests; what is not named is not found. (`GeometricMasks` is the other way round.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.annotate.flow import Flows
from training.annotate.footage import Footage
from training.checks import fields_in_range

MOVING_CLASSES = ("person", "animal", "car", "truck", "bus", "bicycle", "motorcycle", "boat", "ball", "monster", "hand")
"""What moves in videos and games."""

# Of the pictures that SAM 2 was trained on; its own processor, which needs torchvision, has the same numbers.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CORNERS = (2, 3)
"""How SAM 2 labels the two corners of a box."""


@dataclass(frozen=True, kw_only=True)
class GroundedSettings:
    """What is looked for, and when it is believed."""

    classes: tuple[str, ...] = MOVING_CLASSES
    """Words for things that may move."""
    box_score: float = 0.35
    """Of a box, at least."""
    text_score: float = 0.25
    """Of the words for a box, at least."""
    every: int = 10
    """Frames after which new things are looked for."""
    same: float = 0.5
    """A box with at least this intersection over union with a thing that is followed already is that thing."""
    most_things: int = 20
    """New ones at a time, the surest first: time grows with them."""

    def __post_init__(self) -> None:
        if not self.classes or any(not name.strip() or "." in name for name in self.classes):
            raise ValueError(f"classes must be words without full stops, got {self.classes!r}.")
        fields_in_range(self, "box_score", "text_score", low=0, high=1)
        fields_in_range(self, "same", low=0, high=1, ends="(]")
        fields_in_range(self, "every", "most_things", low=1)


class GroundedMasks:
    """Finds things by their names and follows them, forward and back; see the module.

    Args:
        detector: Folder of a GroundingDinoForObjectDetection and its processor, as `save_pretrained` writes both.
        tracker: Folder of a Sam2VideoModel.
        settings: What is looked for.
        device: Where both run.

    Raises:
        ValueError: transformers is not installed, or a folder lacks a file or holds another model.
    """

    def __init__(
        self, detector: Path, tracker: Path, settings: GroundedSettings = GroundedSettings(), *, device: str = "cpu"
    ):
        self.settings, self._device = settings, device
        self._detector = load_model("GroundingDinoForObjectDetection", "grounding-dino", detector).to(device)
        self._processor = _load_processor(detector)
        self._tracker = load_model("Sam2VideoModel", "sam2_video", tracker).to(device)

    def __call__(self, footage: Footage, intrinsics_33: np.ndarray, flows: Flows | None = None) -> np.ndarray:
        """Return where things are that may move; see `Masker`."""
        moving = np.zeros(footage.depth.shape, bool)
        # The boxes of what is followed, where the next looks will be: nothing is found twice.
        known: dict[int, list[np.ndarray]] = {row: [] for row in range(0, len(footage), self.settings.every)}
        for row in known:
            boxes = apart(self._detect(footage.rgb[row]), known[row], self.settings.same)[: self.settings.most_things]
            if not boxes:
                continue
            for frame, masks_NHW in self._follow(footage.rgb, row, boxes):
                moving[frame] |= masks_NHW.any(0)
                if frame in known:
                    known[frame] += [box_of(mask) for mask in masks_NHW if mask.any()]
        return moving

    def _detect(self, rgb_HW3: np.ndarray) -> list[np.ndarray]:
        """Return the boxes of a picture, each (4,) pixels x0, y0, x1, y1, the surest first."""
        import torch

        prompt = ". ".join(name.strip().lower() for name in self.settings.classes) + "."
        inputs = self._processor(images=rgb_HW3, text=prompt, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            outputs = self._detector(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.settings.box_score,
            text_threshold=self.settings.text_score,
            target_sizes=[rgb_HW3.shape[:2]],
        )[0]
        return list(found["boxes"][found["scores"].argsort(descending=True)].cpu().numpy())

    def _follow(self, rgb_THW3: np.ndarray, row: int, boxes: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield frames and the masks (N, H, W) of N things in them, from frame `row` to both ends of the video."""
        import torch

        session = self._session(rgb_THW3, row, boxes)
        with torch.inference_mode():
            self._tracker(session, frame_idx=row)
        for is_reverse in (False, True):
            for output in self._tracker.propagate_in_video_iterator(session, start_frame_idx=row, reverse=is_reverse):
                logits_N1HW = torch.nn.functional.interpolate(
                    output.pred_masks.float(), rgb_THW3.shape[1:3], mode="bilinear", align_corners=False
                )
                yield output.frame_idx, (logits_N1HW[:, 0] > 0).cpu().numpy()

    def _session(self, rgb_THW3: np.ndarray, row: int, boxes: list[np.ndarray]) -> Any:
        """Return a session of SAM 2 that knows the boxes of frame `row`.

        This is what `Sam2VideoProcessor` does; that one needs torchvision, and holds all frames in SAM 2's size.
        """
        import torch
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        height, width = rgb_THW3.shape[1:3]
        size = self._tracker.config.image_size
        side = size if isinstance(size, int) else size[0]
        session: Any = Sam2VideoInferenceSession(
            video_height=height, video_width=width, inference_device=self._device, dtype=torch.float32
        )
        session.processed_frames = Sam2Frames(rgb_THW3, side)
        numbers = list(range(len(boxes)))
        for number, box in zip(numbers, boxes, strict=True):
            corners = torch.from_numpy(box.reshape(1, 1, 2, 2) * (side / np.array([width, height])))
            prompt = {"point_coords": corners.float(), "point_labels": torch.tensor([[_CORNERS]], dtype=torch.int32)}
            session.add_point_inputs(session.obj_id_to_idx(number), row, prompt)
        session.obj_with_new_inputs = numbers
        return session


class Sam2Frames:
    """Frames as SAM 2 wants them, made when they are asked for: those of a long video would fill the memory.

    Args:
        rgb_THW3: (T, H, W, 3) uint8.
        side: Pixels of the square that SAM 2 looks at.
    """

    def __init__(self, rgb_THW3: np.ndarray, side: int):
        self._rgb, self._side = rgb_THW3, side

    def __len__(self) -> int:
        """Return T."""
        return len(self._rgb)

    def __getitem__(self, row: int) -> Any:
        """Return a frame, (3, side, side) float32."""
        import torch

        picture = torch.from_numpy(np.ascontiguousarray(self._rgb[row])).permute(2, 0, 1)[None].float() / 255
        sides = (self._side, self._side)
        picture = torch.nn.functional.interpolate(picture, sides, mode="bilinear", antialias=True)[0]
        mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
        return (picture - mean) / std


def apart(boxes: list[np.ndarray], known: list[np.ndarray], same: float) -> list[np.ndarray]:
    """Return the boxes that are not the same thing as a known one, or as one before them.

    Args:
        boxes: Each (4,): x0, y0, x1, y1.
        known: Each (4,).
        same: Intersection over union from which on two boxes are one thing.
    """
    new: list[np.ndarray] = []
    for box in boxes:
        if all(overlap(box, other) < same for other in [*known, *new]):
            new.append(box)
    return new


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes, (4,) each: x0, y0, x1, y1."""
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    outer = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
    return float(inner / outer) if outer > 0 else 0.0


def box_of(mask_HW: np.ndarray) -> np.ndarray:
    """Return the smallest box about a mask, (4,) float32: x0, y0, x1, y1."""
    x, y, width, height = cv2.boundingRect(mask_HW.astype(np.uint8))
    return np.array([x, y, x + width, y + height], np.float32)


def load_model(class_name: str, model_type: str, folder: Path) -> Any:
    """Return a whole network of transformers for inference.

    Args:
        class_name: Of transformers.
        model_type: That config.json must tell.
        folder: With config.json and safetensors files.

    Raises:
        ValueError: transformers is not installed, or the folder holds another model, none, or half of one.
    """
    transformers = _import_transformers()
    try:
        found = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder} must be a folder with a {class_name} and its config.json: {error}; fetch the model, or use "
            "geometric masks, which need no weights."
        ) from error
    if found != model_type:
        raise ValueError(f"{folder} must hold a {class_name}, its config.json says {found!r}, not {model_type!r}.")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        network, loading = getattr(transformers, class_name).from_pretrained(Path(folder), **options)
    except Exception as error:  # transformers fails in its own ways
        raise ValueError(f"{folder} must hold a whole {class_name} as safetensors: {error}") from error
    if missing := sorted(loading["missing_keys"]):  # transformers makes up what is missing
        raise ValueError(f"the weights in {folder} lack {'; '.join(missing[:3])}; fetch the model again.")
    return network.float().eval()


def _load_processor(folder: Path) -> Any:
    """Return the processor of a Grounding DINO."""
    transformers = _import_transformers()
    try:
        return transformers.GroundingDinoProcessor.from_pretrained(Path(folder), local_files_only=True)
    except Exception as error:  # transformers fails in its own ways
        raise ValueError(f"{folder} must hold the processor and the tokenizer of its model too: {error}") from error


def _import_transformers() -> Any:
    try:
        import transformers
        from transformers import GroundingDinoForObjectDetection, Sam2VideoModel  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"grounded masks need transformers 5 or newer ({error}): pip install 'transformers>=5.0', or use geometric "
            "masks, which need nothing."
        ) from error
    return transformers
