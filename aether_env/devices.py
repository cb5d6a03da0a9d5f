"""Whether PyTorch can compute on a device."""

from __future__ import annotations

from typing import Any


def check_device(device: Any) -> None:
    """Refuse a device that is not there.

    Args:
        device: What PyTorch takes for one: "cpu", "cuda:0", a torch.device.

    Raises:
        ValueError: PyTorch cannot use it here, or it is none.
    """
    import torch  # here: whoever only imports the package does not wait for it

    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, TypeError, AssertionError) as error:  # torch's, by how it was built
        raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
