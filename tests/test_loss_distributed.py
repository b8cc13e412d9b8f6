"""Losses whose negatives come from all ranks equal one process that holds the whole batch, DDP's average included."""
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from memory_vlm.loss import clip_loss, siglip_loss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANKS, PAIRS = 2, 13 # pairs per rank: no multiple of the tile


def plain_clip(x, y, scale):
    z, label = scale * x @ y.T, torch.arange(len(x))
    return (F.cross_entropy(z, label) + F.cross_entropy(z.T, label)) / 2


def plain_siglip(x, y, scale, bias):
    sign = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(sign * (scale * x @ y.T + bias)).sum() / len(x)


# The ranks' losses, and the same for one process (nbs/13_loss.ipynb holds ours equal to open_clip's)
LOSSES = dict(clip=(clip_loss, plain_clip), siglip=(siglip_loss, plain_siglip))


class Towers(nn.Module):
    "Two linear towers with a learned temperature, and a bias for siglip."
    def __init__(self, name, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(10, 8, dtype=dtype), nn.Linear(6, 8, dtype=dtype)
        self.logit_scale = nn.Parameter(torch.tensor(2., dtype=dtype))
        if name == 'siglip': self.logit_bias = nn.Parameter(torch.tensor(-3., dtype=dtype))

    def forward(self, images, texts):
        out = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1), self.logit_scale.exp()
        return (*out, self.logit_bias) if hasattr(self, 'logit_bias') else out


def whole_batch(dtype):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(RANKS * PAIRS, n, generator=g, dtype=dtype) for n in (10, 6)]


def check(rank, name, dtype, tile, eps):
    ours, plain = LOSSES[name]
    alone, model = Towers(name, dtype), Towers(name, dtype)
    expected = plain(*alone(*whole_batch(dtype)))
    expected.backward()
    own = [t[rank * PAIRS:(rank + 1) * PAIRS] for t in whole_batch(dtype)]
    parallel = DistributedDataParallel(model)
    loss = ours(*parallel(*own), gather_distributed=True, tile=tile)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=eps, rtol=0)
    for (key, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        difference = float((p.grad - q.grad).abs().max() / q.grad.abs().max())
        assert difference < eps, f'{name}, {dtype}, {key}: gradients differ by {difference:.2g} of the largest'
    with torch.no_grad(): # as in evaluation, where the second half of the work is left out
        torch.testing.assert_close(ours(*model(*own), gather_distributed=True, tile=tile), expected, atol=eps, rtol=0)


def one_rank(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=RANKS)
    try:
        for name in LOSSES:
            check(rank, name, torch.float64, tile=5, eps=1e-9)
            check(rank, name, torch.float32, tile=2048, eps=1e-5)
    finally: dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    mp.spawn(one_rank, (str(tmp_path / 'store'),), nprocs=RANKS) # raises with the traceback of the rank that failed
