"""The precision of float32 on CUDA is set in one way for all switches of torch."""

import pytest
import torch

from segkit.utils.seeding import configure_backends


@pytest.mark.parametrize("tf32", [True, False])
def test_old_and_new_switches_agree(tf32):
    """torch.export and torch.compile read the old ones, and fail if they disagree with the new ones."""
    try:
        configure_backends(deterministic=False, tf32=tf32)
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if tf32 else "ieee")
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    finally:
        configure_backends(deterministic=False, tf32=False)
