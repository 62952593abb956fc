"""Two processes, each with half of a batch, have the codebook that one has with all of it."""

import pytest
import torch
import torch.distributed as dist
from zoo_helpers import made

from zoo.nn import VectorQuantize

D, K = 6, 20


def halves(rank, folder, options):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    vq = trained(options, slice(30 * rank, 30 * rank + 30))
    torch.save(vq.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(options, part):
    torch.manual_seed(0)
    vq = VectorQuantize(D, K, **options)
    torch.manual_seed(part.start)  # what is drawn differs between processes
    for step in range(3):
        vq(made(1, 60, D, seed=2 * step)[:, part])
    return vq


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"kmeans_init": True, "threshold_ema_dead_code": 1.5}], ids=["plain", "resets"]
)
def test_codebooks_agree(options, tmp_path):
    torch.multiprocessing.start_processes(
        halves, (str(tmp_path), options), nprocs=2, start_method="spawn"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, t in first.items():
        assert torch.equal(t, second[name]), name
    if not options:
        alone = trained(options, slice(0, 60)).state_dict()
        for name, t in alone.items():
            torch.testing.assert_close(first[name], t, atol=1e-6, rtol=1e-5)
