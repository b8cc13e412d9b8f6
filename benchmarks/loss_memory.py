"""Time and memory of our contrastive losses compared with open_clip's, forward plus backward.

    python benchmarks/loss_memory.py                        # B = 8192, D = 512, on the CPU or, if there is one, on CUDA
    python benchmarks/loss_memory.py --loss siglip --batch 4096
    python benchmarks/loss_memory.py --large --csv benchmarks/results/loss_large.csv # 8192-32768 pairs, 1 and 2 ranks
    python benchmarks/loss_memory.py --vectors 8 --csv benchmarks/results/loss_memory_vectors.csv # K vectors an image
    python benchmarks/loss_memory.py --csv benchmarks/results/loss_memory.csv  # also append the results to a file

Method:

- Gradients: the largest difference from open_clip's, over the largest gradient of the same input.
- Time: both losses are interleaved in one process, so that other load on the machine slows both. The table shows the
  fastest of the rounds after one unmeasured round: other work on the machine can only add to a time.
- Memory: each loss runs in a fresh process, which makes the features, runs a batch of 64 so that libraries are loaded
  and their threads started, notes its resident memory, resets the kernel's high-water mark, runs one step, and reads
  the high-water mark. The difference counts all that the step needs beyond its inputs: matrices, temporary copies,
  buffers inside the matrix library, and the gradients that it returns. On CUDA it is the allocator's peak above
  what the features take.

- --large: one step each, in fresh processes, after the batch of 64. Two ranks are two processes on this machine (gloo)
  with half of the pairs and of the threads each; negatives come from both, with gradients, and memory is that of the
  larger rank. A step of open_clip's takes four times as much at twice the batch; where that is more than the machine
  has free, only ours runs.

- --vectors K: memory of ours for one vector an image, and for K that are compared by the nearest (maxsim) or mixed by
  the caption (caption). Goal for K = 8 at B = 8192, D = 512: twice that of one, plus the features (B x K x D).

On a CPU the memory part needs Linux (/proc).
"""
import argparse
import open_clip
import os
import psutil
import subprocess
import sys
import tempfile
import time
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from functools import partial
from memory_vlm.loss import clip_loss, siglip_loss
from open_clip.loss import ClipLoss, SigLipLoss
from pathlib import Path
from results import machine, store

LOSSES = {'ours': dict(clip=clip_loss, siglip=siglip_loss), 'open_clip': dict(clip=ClipLoss(), siglip=SigLipLoss())}
# What DESIGN asks of the CLIP loss at B = 8192, D = 512 on a CPU
GOALS = dict(speedup=1.5, saving=7.0, growth=2.2, gradients=1e-5)
MiB = 2**20


def make_inputs(args, batch):
    """Return normalized features, a scale, and a bias for siglip, made without temporaries that would count as memory.

    Pairs have cosine 0.4, as half-way through training. For pairs that are already learned, float32 gradients of
    either loss are mostly rounding."""
    g = torch.Generator(args.device).manual_seed(0)
    x, y = (torch.empty(batch, args.dim, device=args.device).normal_(generator=g) for _ in range(2))
    for i in range(0, batch, 1024): y[i:i+1024].add_(x[i:i+1024], alpha=0.44)
    if args.vectors: x = torch.empty(batch, args.vectors, args.dim, device=args.device).normal_(generator=g)
    if args.queries: y = torch.empty(batch, 2, args.dim, device=args.device).normal_(generator=g)
    for t in (x, y): t.div_(torch.linalg.vector_norm(t, dim=-1, keepdim=True))
    scalars = [1 / 0.07] if args.loss == 'clip' else [10., -10.]
    inputs = [x.to(args.dtype), y.to(args.dtype), *(torch.tensor(s, device=args.device) for s in scalars)]
    return [t.requires_grad_() for t in inputs]


def step(loss, inputs):
    "Run forward and backward."
    for t in inputs: t.grad = None
    loss(*inputs).backward()


def seconds(loss, inputs):
    if inputs[0].is_cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, inputs)
    if inputs[0].is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_times(args):
    "Return the fewest seconds of each loss, interleaved."
    inputs, times = make_inputs(args, args.batch), {name: [] for name in LOSSES}
    for _ in range(args.rounds + 1):
        for name, table in LOSSES.items(): times[name].append(seconds(table[args.loss], inputs))
    return {name: min(t[1:]) for name, t in times.items()}


def compare_gradients(args):
    "Return the largest difference between the gradients, relative to the largest gradient of each input."
    inputs, grads = make_inputs(args, args.batch), []
    for table in LOSSES.values():
        step(table[args.loss], inputs)
        grads.append([t.grad.double() for t in inputs])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*grads))


def resident(field):
    "Return the bytes of a field of /proc/self/status: VmRSS is resident now, VmHWM the peak since the last reset."
    line = next(l for l in Path('/proc/self/status').read_text(encoding='utf-8').splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024


def loss_of(args):
    "Return the loss to be measured, with negatives from all ranks."
    if args.ranks == 1: return LOSSES[args.memory_of][args.loss]
    if args.memory_of == 'ours': return partial(LOSSES['ours'][args.loss], gather_distributed=True)
    kind, sharing = type(LOSSES['open_clip'][args.loss]), dict(rank=dist.get_rank(), world_size=args.ranks)
    return kind(**sharing, **(dict(local_loss=True, gather_with_grad=True) if args.loss == 'clip' else {}))


def extra_memory(args):
    "Return the peak bytes of one step beyond its inputs, and its seconds. Call it in a fresh process."
    loss = loss_of(args)
    step(loss, make_inputs(args, 64))
    inputs = make_inputs(args, args.batch // args.ranks)
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        took = seconds(loss, inputs)
        return torch.cuda.max_memory_allocated() - before, took
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8') # resets VmHWM
    before = resident('VmRSS')
    took = seconds(loss, inputs)
    return resident('VmHWM') - before, took


def on_rank(rank, args, folder):
    "Write `extra_memory` of one rank to a file."
    torch.set_num_threads(max(1, args.threads // args.ranks))
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=args.ranks)
    Path(folder, f'{rank}.txt').write_text('{} {}'.format(*extra_memory(args)), encoding='utf-8')
    dist.destroy_process_group()


def most_of_ranks(args):
    "Return the largest memory and the longest time over ranks."
    if args.ranks == 1: return extra_memory(args)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (args, folder), nprocs=args.ranks)
        found = [Path(folder, f'{rank}.txt').read_text(encoding='utf-8').split() for rank in range(args.ranks)]
    return max(int(memory) for memory, _ in found), max(float(took) for _, took in found)


def extra_memory_of(args, name, batch, ranks=1, vectors=0, queries=False):
    "Return bytes and seconds of the loss `name`, measured in a fresh process."
    command = [sys.executable, __file__, '--memory-of', name, '--loss', args.loss, '--batch', batch, '--dim',
               args.dim, '--ranks', ranks, '--vectors', vectors, *['--queries'] * queries,
               '--device', args.device, '--dtype', str(args.dtype).removeprefix('torch.'), '--threads', args.threads]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, encoding='utf-8')
    memory, took = done.stdout.split()
    return int(memory), float(took)


def large(args):
    "Measure both losses at large batches on one rank and on two."
    rows, theirs = [], {}
    print(f"{'pairs':>8}{'ranks':>7}{'seconds':>10}{'MiB a rank':>12}{'open_clip: seconds':>21}{'MiB a rank':>12}")
    for batch in (8192, 16384, 32768):
        for ranks in (1, 2):
            (memory, took), peer = extra_memory_of(args, 'ours', batch, ranks), None
            expected, free = 4 * theirs.get((batch // 2, ranks), 0), psutil.virtual_memory().available
            if ranks * expected < free / 2: peer = extra_memory_of(args, 'open_clip', batch, ranks)
            theirs[batch, ranks] = peer[0] if peer else expected
            shown = (f'{peer[1]:21.2f}{peer[0] / MiB:12.0f}'
                     if peer else f'   not run: needs about {ranks * expected / 2**30:.0f} GiB of {free / 2**30:.0f}')
            print(f'{batch:8}{ranks:7}{took:10.2f}{memory / MiB:12.0f}{shown}', flush=True)
            rows.append(dict(batch=batch, ranks=ranks, seconds_ours=f'{took:.2f}', mib_ours=f'{memory / MiB:.1f}',
                             seconds_open_clip=f'{peer[1]:.2f}' if peer else '', mib_open_clip=f'{peer[0] / MiB:.1f}'
                             if peer else ''))
    if args.csv: store(args.csv, rows, args.device, loss=args.loss, dim=args.dim, threads=args.threads)


def several(args):
    "Measure the memory of ours for one vector of an image and for several."
    rows, one, features = [], 0, args.batch * args.vectors * args.dim * args.dtype.itemsize
    for readout, given in dict(none={}, maxsim=dict(vectors=args.vectors),
                               caption=dict(vectors=args.vectors, queries=True)).items():
        memory, took = extra_memory_of(args, 'ours', args.batch, **given)
        one = memory if readout == 'none' else one
        allowed = '' if readout == 'none' else round((2 * one + features) / MiB, 1)
        rows.append(dict(readout=readout, vectors=given.get('vectors', 1), seconds=f'{took:.2f}',
                         mib=f'{memory / MiB:.1f}', mib_allowed=allowed))
        print(rows[-1], flush=True)
    if args.csv:
        store(args.csv, rows, args.device, loss=args.loss, batch=args.batch, dim=args.dim, threads=args.threads)


def parse():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--loss', choices=['clip', 'siglip'], default='clip')
    p.add_argument('--batch', type=int, default=8192, help='pairs')
    p.add_argument('--dim', type=int, default=512, help='embedding dimension')
    p.add_argument('--rounds', type=int, default=5, help='measured rounds')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--dtype', type=lambda name: getattr(torch, name), default=torch.float32,
                   help='dtype, such as bfloat16')
    p.add_argument('--threads', type=int, default=os.cpu_count(), help='CPU threads')
    p.add_argument('--large', action='store_true',
                   help='measure large batches on one rank and on two; give it its own --csv file')
    p.add_argument('--vectors', type=int, default=0, help='memory of so many vectors of an image beside one')
    p.add_argument('--queries', action='store_true', help=argparse.SUPPRESS)
    p.add_argument('--ranks', type=int, default=1, help=argparse.SUPPRESS)
    p.add_argument('--csv', type=Path, help='append the results to this file')
    p.add_argument('--memory-of', choices=list(LOSSES), help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    if args.memory_of: return print(*most_of_ranks(args))
    if args.large: return large(args)
    if args.vectors: return several(args)
    B, dtype = args.batch, str(args.dtype).removeprefix('torch.')
    print(f'{args.loss} loss, B = {B}, D = {args.dim}, {dtype}, forward plus backward\n'
          f'{machine(args.device)}, torch {torch.__version__}, open_clip {open_clip.__version__}\n')
    gradients, times = compare_gradients(args), compare_times(args)
    ours, theirs, twice = (extra_memory_of(args, *a)[0] for a in [('ours', B), ('open_clip', B), ('ours', 2 * B)])
    figures = dict(speedup=times['open_clip'] / times['ours'], saving=theirs / ours, growth=twice / ours,
                   gradients=gradients)
    print(f"{'':12}{'seconds':>10}{'extra MiB':>12}{f'MiB at {2*B}':>14}")
    print(f"{'ours':12}{times['ours']:10.4f}{ours/MiB:12.1f}{twice/MiB:14.1f}")
    print(f"{'open_clip':12}{times['open_clip']:10.4f}{theirs/MiB:12.1f}\n")
    is_goal = (args.loss, B, args.dim, dtype, args.device) == ('clip', 8192, 512, 'float32', 'cpu')
    for name, relation, text in [('speedup', '>=', 'times as fast'), ('saving', '>=', 'times less extra memory'),
                                 ('growth', '<=', 'times our memory at twice the batch'),
                                 ('gradients', '<=', 'largest relative difference of gradients')]:
        value, goal = figures[name], GOALS[name]
        met = value >= goal if relation == '>=' else value <= goal
        print(f'{value:10.3g} {text}' + (f"  ({'meets' if met else 'MISSES'} {relation} {goal:g})" if is_goal else ''))
    if args.csv:
        row = dict(seconds_ours=f"{times['ours']:.4f}", seconds_open_clip=f"{times['open_clip']:.4f}",
                   mib_ours=f'{ours/MiB:.1f}', mib_open_clip=f'{theirs/MiB:.1f}',
                   mib_ours_twice_batch=f'{twice/MiB:.1f}')
        store(args.csv, [row | {name: f'{value:.3g}' for name, value in figures.items()}], args.device, loss=args.loss,
              batch=B, dim=args.dim, dtype=dtype, threads=args.threads)


if __name__ == '__main__': main()
