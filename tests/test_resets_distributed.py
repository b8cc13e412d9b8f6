"""Ranks that see different images find the same memory tokens dead and re-initialize them identically."""
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contextlib import ExitStack
from memory_vlm.training.resets import MemoryResetCallback
from memory_vlm.vision import tiny_vit
from types import SimpleNamespace

RANKS = 2


def end_of_window(rank, init):
    "Return usage on the images of this rank, its mean over ranks, and the tokens after the resets."
    vit = tiny_vit(num_memory_tokens=6, memory_init=init)
    for block in vit.blocks: block.attn.qkv.weight.data *= 20 # attention that differs from image to image
    net = SimpleNamespace(visual=vit, mean=torch.zeros(3), std=torch.ones(3))
    resets = MemoryResetCallback(net, every=1)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank))
    with ExitStack() as hooks:
        resets.usage.record(hooks)
        vit(images)
    alone = resets.usage.total.mean(0, keepdim=True) * vit.layout.num_keys
    resets.num_sampled, resets.threshold = 1, resets.usage.mean().median().item() + 1e-6 # half of the tokens are dead
    resets.learn = SimpleNamespace(train_iter=1, n_epoch=1, steps_of=lambda n: 9, dls=SimpleNamespace(train=range(9)),
                                   xb=(images,), opt=torch.optim.AdamW(vit.parameters()))
    before = vit.memory.tokens.detach().clone()
    resets.end_window()
    return alone, resets.usages[0], before, vit.memory.tokens.detach()


def one_rank(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=RANKS)
    try:
        for init in ('learnable', 'patches'):
            found = end_of_window(rank, init)
            every = [None] * RANKS
            dist.all_gather_object(every, found)
            alone, usage, before, after = zip(*every)
            assert not torch.equal(*alone), 'the ranks saw different images'
            assert torch.equal(*usage)
            torch.testing.assert_close(usage[0], (alone[0] + alone[1]) / 2)
            assert torch.equal(*before) and torch.equal(*after)
            assert (after[0] != before[0]).any(-1).sum() == 3
    finally: dist.destroy_process_group()


def test_two_ranks_reset_identically(tmp_path):
    mp.spawn(one_rank, (str(tmp_path / 'store'),), nprocs=RANKS) # raises with the traceback of the rank that failed
