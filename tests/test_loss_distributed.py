"""Losses whose negatives come from all ranks equal one process that holds the whole batch, DDP's average included."""
import math
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from itertools import product
from memory_vlm.loss import clip_loss, siglip_loss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANKS, PAIRS = 2, 13 # pairs per rank: no multiple of the tile


def cosine(x, y):
    "Similarity of one vector, or of K vectors with captions, or with captions and their queries, a pair at a time."
    if x.dim() == 2: return x @ y.T
    if y.dim() == 2: return torch.stack([torch.stack([(v @ t).max() for t in y]) for v in x])
    return torch.stack([torch.stack([F.normalize((v @ q).softmax(0) @ v, dim=0) @ t for t, q in y]) for v in x])


def plain_clip(x, y, scale, left_out):
    z, label = (scale * cosine(x, y)).masked_fill(left_out, -torch.inf), torch.arange(len(x))
    return (F.cross_entropy(z, label) + F.cross_entropy(z.T, label)) / 2


def plain_siglip(x, y, scale, bias, left_out):
    sign = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid((sign * (scale * cosine(x, y) + bias)).masked_fill(left_out, torch.inf)).sum() / len(x)


# The ranks' losses, and the same for one process (nbs/13_loss.ipynb holds ours equal to open_clip's)
LOSSES = dict(clip=(clip_loss, plain_clip), siglip=(siglip_loss, plain_siglip))


class Towers(nn.Module):
    "Two linear towers with a learned temperature, and a bias for siglip."
    def __init__(self, name, readout, dtype):
        super().__init__()
        torch.manual_seed(0)
        shape = dict(none=(8,), maxsim=(3, 8), caption=(3, 8))[readout]
        self.image = nn.Sequential(nn.Linear(10, math.prod(shape), dtype=dtype), nn.Unflatten(1, shape))
        self.text = nn.Linear(6, 8, dtype=dtype)
        self.query = nn.Linear(8, 8, dtype=dtype) if readout == 'caption' else None
        self.logit_scale = nn.Parameter(torch.tensor(2., dtype=dtype))
        if name == 'siglip': self.logit_bias = nn.Parameter(torch.tensor(-3., dtype=dtype))

    def forward(self, images, texts):
        texts = F.normalize(self.text(texts), dim=1)
        if self.query: texts = torch.stack([texts, 5 * self.query(texts)], 1)
        out = F.normalize(self.image(images), dim=-1), texts, self.logit_scale.exp()
        return (*out, self.logit_bias) if hasattr(self, 'logit_bias') else out


def whole_batch(dtype):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(RANKS * PAIRS, n, generator=g, dtype=dtype) for n in (10, 6)]


def true_captions():
    "Numbers of the captions that are true of each image, its own first; one rank knows more of them than the other."
    return torch.randint(40, (RANKS * PAIRS, 3), generator=torch.Generator().manual_seed(2))


def check(rank, name, readout, dtype, tile, eps, false_negatives):
    ours, plain = LOSSES[name]
    alone, model = Towers(name, readout, dtype), Towers(name, readout, dtype)
    mine, true, left_out = slice(rank * PAIRS, (rank + 1) * PAIRS), true_captions(), torch.zeros((), dtype=torch.bool)
    kwargs = dict(gather_distributed=True, tile=tile)
    if false_negatives:
        true[PAIRS:, 2] = -1
        left_out = (true[:, None] == true[:, :1]).any(-1) & ~torch.eye(len(true), dtype=torch.bool)
        assert left_out[:PAIRS, PAIRS:].any(), 'no pair of two ranks is left out'
        kwargs['true_captions'] = true[mine, :3 - rank]
    expected = plain(*alone(*whole_batch(dtype)), left_out)
    expected.backward()
    own = [t[mine] for t in whole_batch(dtype)]
    parallel = DistributedDataParallel(model)
    loss = ours(*parallel(*own), **kwargs)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=eps, rtol=0)
    for (key, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        difference = float((p.grad - q.grad).abs().max() / q.grad.abs().max())
        assert difference < eps, f'{name}, {readout}, {dtype}, {key}: gradient off by {difference:.2g} of the largest'
    with torch.no_grad(): # as in evaluation, where the second half of the work is left out
        torch.testing.assert_close(ours(*model(*own), **kwargs), expected, atol=eps, rtol=0)


def one_rank(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=RANKS)
    try:
        for name, readout, false_negatives in product(LOSSES, ('none', 'maxsim', 'caption'), (False, True)):
            check(rank, name, readout, torch.float64, 5, 1e-9, false_negatives)
            check(rank, name, readout, torch.float32, 2048, 1e-5, false_negatives)
    finally: dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    mp.spawn(one_rank, (str(tmp_path / 'store'),), nprocs=RANKS) # raises with the traceback of the rank that failed
