"""Every convention of this project, declared once; other modules only refer to it.

Pose    `world_from_camera`, 4x4, camera-to-world: p_world = world_from_camera @ p_camera.
Axes    OpenCV camera: +x right, +y down, +z forward.
World   of an env: the camera at reset (float64, kept outside the network);
        of the network: the last history frame in a step's window, the first frame in a clip.
Units   metres, radians, seconds. Depth is z-depth in metres, finite and at most `FAR_DEPTH`.
        A world without scale counts in its own unit instead of metres and says so.
Pixels  the top-left pixel's centre is (0.5, 0.5); intrinsics are in pixels.
        (The published AETHER checkpoint samples rays at integer pixels: a setting of that checkpoint.)
Shapes  name_BTCHW: B batch, T time, C channels, H rows, W columns, N latent steps; 3, 4 and 6 stand for themselves.
Colour  RGB; uint8 in 0..255 outside the network, float in [-1, 1] inside.
"""

FRAMES_PER_LATENT = 4
"""Frames that one latent step stands for."""

FAR_DEPTH = 100.0
"""Depth of sky and of everything farther, in metres (or units, where a world has no scale)."""
