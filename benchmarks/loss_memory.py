"""Time and memory of our contrastive losses beside open_clip's, forward plus backward.

    python benchmarks/loss_memory.py                        # B = 8192, D = 512, on the CPU or, if there is one, on CUDA
    python benchmarks/loss_memory.py --loss siglip --batch 4096
    python benchmarks/loss_memory.py --csv benchmarks/results/loss_memory.csv  # also append the figures to a file

What is measured, and how:

- Gradients: the largest difference from open_clip's, over the largest gradient of the same input.
- Time: both losses take turns in this one process, ours and theirs in each round, so that a machine which is busy or
  hot for a while slows both. The table shows the fastest of the rounds after one unmeasured round: other work on the
  machine can only add to a time.
- Memory: each loss runs in a fresh process, which makes the features, runs a batch of 64 so that libraries are loaded
  and their threads started, notes its resident memory, resets the kernel's high-water mark, runs one step, and reads
  the high-water mark. The difference counts all that the step needs beyond its inputs: matrices, temporary copies,
  buffers inside the matrix library, and the gradients that it hands back. On CUDA it is the allocator's peak above
  what the features take.

On a CPU the memory part needs Linux (/proc).
"""
import argparse, os, subprocess, sys, time
from pathlib import Path

import open_clip, torch
from open_clip.loss import ClipLoss, SigLipLoss
from memory_vlm.loss import clip_loss, siglip_loss
from results import machine, store

LOSSES = {'ours': dict(clip=clip_loss, siglip=siglip_loss), 'open_clip': dict(clip=ClipLoss(), siglip=SigLipLoss())}
# What DESIGN asks of the CLIP loss at B = 8192, D = 512 on a CPU
GOALS = dict(speedup=1.5, saving=7.0, growth=2.2, gradients=1e-5)
MiB = 2**20


def make_inputs(args, batch):
    """Normalised features, a scale, and a bias for siglip; made without temporaries that would count as memory.

    Pairs have cosine 0.4, as half-way through training. Of pairs already learned, the gradients in float32 hold little
    but rounding, in either loss."""
    g = torch.Generator(args.device).manual_seed(0)
    x, y = (torch.empty(batch, args.dim, device=args.device).normal_(generator=g) for _ in range(2))
    for i in range(0, batch, 1024): y[i:i+1024].add_(x[i:i+1024], alpha=0.44)
    for t in (x, y): t.div_(torch.linalg.vector_norm(t, dim=1, keepdim=True))
    scalars = [1 / 0.07] if args.loss == 'clip' else [10., -10.]
    inputs = [x.to(args.dtype), y.to(args.dtype), *(torch.tensor(s, device=args.device) for s in scalars)]
    return [t.requires_grad_() for t in inputs]


def step(loss, inputs):
    "Forward plus backward."
    for t in inputs: t.grad = None
    loss(*inputs).backward()


def seconds(loss, inputs):
    if inputs[0].is_cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, inputs)
    if inputs[0].is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_times(args):
    "Fewest seconds that each loss took, taking turns."
    inputs, times = make_inputs(args, args.batch), {name: [] for name in LOSSES}
    for _ in range(args.rounds + 1):
        for name, table in LOSSES.items(): times[name].append(seconds(table[args.loss], inputs))
    return {name: min(t[1:]) for name, t in times.items()}


def compare_gradients(args):
    "Largest difference between the gradients, relative to the largest gradient of each input."
    inputs, grads = make_inputs(args, args.batch), []
    for table in LOSSES.values():
        step(table[args.loss], inputs)
        grads.append([t.grad.double() for t in inputs])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*grads))


def resident(field):
    "Bytes of a field of /proc/self/status: VmRSS is resident now, VmHWM the most since the last reset."
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024


def extra_memory(args):
    "Most bytes that one step takes beyond its inputs; to be called in a fresh process."
    loss = LOSSES[args.memory_of][args.loss]
    step(loss, make_inputs(args, 64))
    inputs = make_inputs(args, args.batch)
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, inputs)
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5') # resets VmHWM
    before = resident('VmRSS')
    step(loss, inputs)
    return resident('VmHWM') - before


def extra_memory_of(args, name, batch):
    "`extra_memory` of the loss called `name`, measured in a process of its own."
    command = [sys.executable, __file__, '--memory-of', name, '--loss', args.loss, '--batch', batch, '--dim', args.dim,
               '--device', args.device, '--dtype', str(args.dtype).removeprefix('torch.'), '--threads', args.threads]
    return int(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)


def parse():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--loss', choices=['clip', 'siglip'], default='clip')
    p.add_argument('--batch', type=int, default=8192, help='pairs')
    p.add_argument('--dim', type=int, default=512, help='width of the features')
    p.add_argument('--rounds', type=int, default=5, help='measured turns of each loss')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--dtype', type=lambda name: getattr(torch, name), default=torch.float32, help='such as bfloat16')
    p.add_argument('--threads', type=int, default=os.cpu_count(), help='threads of the CPU')
    p.add_argument('--csv', type=Path, help='file to append the figures to')
    p.add_argument('--memory-of', choices=list(LOSSES), help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    if args.memory_of: return print(extra_memory(args))
    B, dtype = args.batch, str(args.dtype).removeprefix('torch.')
    print(f'{args.loss} loss, B = {B}, D = {args.dim}, {dtype}, forward plus backward\n'
          f'{machine(args.device)}, torch {torch.__version__}, open_clip {open_clip.__version__}\n')
    gradients, times = compare_gradients(args), compare_times(args)
    ours, theirs, twice = (extra_memory_of(args, *a) for a in [('ours', B), ('open_clip', B), ('ours', 2 * B)])
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
                   mib_ours=f'{ours/MiB:.1f}', mib_open_clip=f'{theirs/MiB:.1f}', mib_ours_twice_batch=f'{twice/MiB:.1f}')
        store(args.csv, [row | {name: f'{value:.3g}' for name, value in figures.items()}], args.device, loss=args.loss,
              batch=B, dim=args.dim, dtype=dtype, threads=args.threads)


if __name__ == '__main__': main()
