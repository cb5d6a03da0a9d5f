"""Public test sets as they lie on disk, read as videos with their truth.

Every set is read in the layout of its publisher and in the one that the public preparation scripts leave behind
(MonST3R's `datasets_preprocess/prepare_*.py`, which CUT3R and AETHER follow); that one is tried first. From the root:

    sintel, sintel_pose   training/final/SCENE/*.png, training/depth/SCENE/*.dpt, training/camdata_left/SCENE/*.cam
    bonn, prepared        [rgbd_bonn_dataset/]rgbd_bonn_NAME/{rgb_110,depth_110}/TIMESTAMP.png
    bonn, as published    [rgbd_bonn_dataset/]rgbd_bonn_NAME/{rgb,depth}/TIMESTAMP.png
    kitti, prepared       depth_selection/val_selection_cropped/image_gathered/DRIVE_02/*.png,
                          depth_selection/val_selection_cropped/groundtruth_depth_gathered/DRIVE_02/*.png
    kitti, as published   val/DRIVE/proj_depth/groundtruth/image_02/*.png with DATE/DRIVE/image_02/data/*.png
    tum, prepared         rgbd_dataset_NAME/{rgb_90/TIMESTAMP.png,groundtruth_90.txt}
    tum, as published     rgbd_dataset_NAME/{rgb/*.png,rgb.txt,groundtruth.txt}
    scannet, prepared     SCENE/{color_90/frame_0000.jpg,pose_90.txt[,intrinsic/intrinsic_color.txt]}
    scannet, extracted    SCENE/{color/N.jpg,pose/N.txt[,intrinsic/intrinsic_color.txt]}

KITTI's 1000 single pictures (`val_selection_cropped/image`) are no videos and are not read.

    set       frames                       depth on disk               poses on disk              left out, counted
    sintel    all                          float32 metres, sky huge    world-to-camera, float64   -
    bonn      31st to 140th                16 bits, metres * 5000      not read, see below        no depth within 20 ms
    kitti     the first 110 with depth     16 bits, metres * 256       none                       -
    tum       every 3rd, at most 90        not read                    camera-to-world, metres    no pose within 20 ms
    scannet   every 3rd, at most 90        not read                    camera-to-world, metres    infinite pose

Depth is z-depth, 0 in the 16-bit files where unknown. Sources: Sintel's devkit `sintel_io.py` (x = K [R t] X; metres);
the KITTI depth devkit's readme (0 is invalid, metres = value / 256); the TUM RGB-D file formats (5000 a metre, pose of
the colour camera's optical centre, tx ty tz qx qy qz qw), which Bonn shares; ScanNet's SensReader (camera to world).
Sintel's poses come out inverted. Principal points come out half a pixel larger: these sets count pixel centres at
integers (Sintel's is 511.5, 217.5 in 1024 x 436 pixels), see conventions for ours.

Training takes more of TUM as published, with depth and the publisher's intrinsics: see tum.py.

Bonn's groundtruth.txt follows markers on the sensor and not the camera, and the published transform between the two
(`compute_global_transformation.py`) is not rigid (it scales by 1.059): its videos have no poses. Its depth is taken by
time; the public scripts pair the files by their place in the folder, which differs where a picture was dropped.
"""

from training.evaluation.datasets.files import DatasetError
from training.evaluation.datasets.layouts import SEQUENCES, DatasetName, open_dataset
from training.evaluation.datasets.video import LabelledFrames, LabelledVideo, windows

__all__ = ["SEQUENCES", "DatasetError", "DatasetName", "LabelledFrames", "LabelledVideo", "open_dataset", "windows"]
