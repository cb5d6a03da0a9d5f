"""Cameras, intrinsics and masks of moving things for RGB-D videos that come without them (the paper, section 3.1)."""
