"""Sources laid out for the kernels: whole tiles, and where the padding starts."""

import numpy as np
import pytest
import torch

from ddeq_fast.kernels.sources import last_charge, pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 15, 16, 33])
def test_sources_in_tiles(n, dtype, device, cloud):
    """Tile k holds sources 16 k to 16 k + 15, a row for each coordinate and one for the charge, zero past the last."""
    y, t, v = cloud(3, n, 2).float(), cloud(3, n, 5).float(), cloud(3 * n).view(3, n).float()
    packed = pack([a.to(device) for a in (y, t, v)], 16, dtype)
    tiles = -(-n // 16)
    expected = np.zeros((3, tiles, 8, 16))
    rows = np.concatenate((y.numpy(), t.numpy(), v.numpy()[..., None]), 2)
    for cloud_index in range(3):
        for j in range(n):
            expected[cloud_index, j // 16, :, j % 16] = rows[cloud_index, j]
    assert packed.dtype == dtype and packed.is_contiguous()
    assert (packed.cpu().double().numpy() == expected).all()


def test_sources_that_are_not_contiguous(device, cloud):
    y, v = cloud(2, 3, 7).mT.to(device), cloud(14).view(7, 2).T.to(device)
    whole = pack([y.contiguous(), v.contiguous()], 16, torch.float64)
    assert torch.equal(pack([y, v], 16, torch.float64), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("n", [1, 7, 1024, 1025, 2500])
def test_where_padding_starts(n, dtype, device):
    """Past the last charge that is not zero, whatever lies before it: more charges than are looked at in one go too."""
    lengths = sorted({0, 1, n // 2, n - 1, n})
    v = torch.zeros(len(lengths), n, dtype=dtype)
    for row, length in zip(v, lengths, strict=True):
        row[:length:3] = 1
        if length:
            row[length - 1] = 2
    found = last_charge(v.to(device))
    assert found.dtype == torch.int32 and found.tolist() == lengths
