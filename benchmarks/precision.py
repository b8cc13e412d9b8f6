"""Time of a training step with each `training.precision`, at the default architecture with 64 memory tokens.

    python benchmarks/precision.py                    # batch 4 on the CPU, or batch 256 on CUDA if there is one
    python benchmarks/precision.py --csv benchmarks/results/precision.csv

All precisions are interleaved in one process; a ratio is the median over rounds of the ratios within a round. The
difference of the gradient from the fp32 gradient, at the same weights and pairs, is given relative to its norm, for the
whole model and for each tower. A precision whose forward and backward pass takes more than five times as long as fp32
(as fp16 on a CPU) is measured once: its ratio is that of these single passes. """
import argparse
import copy
import statistics
import time
import torch
from memory_vlm.evaluation.validation import PRECISIONS
from memory_vlm.learner import make_loss
from results import store
from train_step import our_step, pairs, seconds


def gradients(args, model, images, ids):
    "Return the gradient of each parameter in `args.precision` (with loss scaling in fp16, as in a fit)."
    dtype, scale = PRECISIONS[args.precision], 1024. if args.precision == 'fp16' else 1.
    with torch.autocast(args.device, dtype, enabled=dtype is not None):
        loss = make_loss(model.cfg.contrastive)(model(images, ids), None)
    (loss * scale).backward()
    if args.device == 'cuda': torch.cuda.synchronize()
    found = {n: p.grad / scale for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def difference(found, exact, names):
    "Return the norm of the difference of gradients over the norm of the exact ones, over these parameters."
    def norm(grads): return torch.stack([g.norm() for g in grads]).norm()
    return (norm([found[n] - exact[n] for n in names]) / norm([exact[n] for n in names])).item()


def trainer(args, precision, images, ids):
    "Return a function that takes one step in a precision and one that returns its gradients."
    args = copy.copy(args)
    args.precision = precision
    model, step = our_step(args, images, ids)
    return step, lambda: gradients(args, model, images, ids)


def main():
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda' if cuda else 'cpu')
    p.add_argument('--batch', type=int, help='pairs; 4 on the CPU, 256 on CUDA')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--precisions', nargs='+', choices=list(PRECISIONS), default=list(PRECISIONS))
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    args.batch = args.batch or (256 if args.device == 'cuda' else 4)
    images, ids = pairs(args)
    names = dict.fromkeys(['fp32', *args.precisions])
    steps, differences, passes, exact = {}, {}, {}, None
    for name in names:
        torch.manual_seed(0)
        steps[name], gradient = trainer(args, name, images, ids)
        gradient() # libraries start
        start = time.perf_counter()
        found = gradient()
        passes[name] = time.perf_counter() - start
        exact = found if exact is None else exact
        differences[name] = {tower: difference(found, exact, [n for n in exact if n.startswith(tower)])
                             for tower in ('', 'visual', 'text')} # the first is the whole
    turns = [name for name in steps if passes[name] <= 5 * passes['fp32']]
    # the first warms up
    rounds = [{name: seconds(args, steps[name]) for name in turns} for _ in range(args.rounds + 1)][1:]
    rows = []
    for name in steps:
        measured = rounds if name in turns else [passes]
        ratio, took = statistics.median(r['fp32'] / r[name] for r in measured), statistics.median(r[name]
                for r in measured)
        rows.append(dict(precision=name, rounds=len(rounds) if name in turns else 0, seconds=round(took, 4),
                         speed_vs_fp32=round(ratio, 3),
                         **{f'{tower or "gradient"}_difference': f'{d:.2g}' for tower, d in differences[name].items()}))
        print(f'{name:5} {took:8.3f} s {ratio:5.2f} x the speed of fp32   gradient differs by '
              f'{differences[name][""]:.1%} of its norm, '
              f'that of images by {differences[name]["visual"]:.1%}, of captions by {differences[name]["text"]:.1%}')
    if args.csv: store(args.csv, rows, device=args.device, batch=args.batch)


if __name__ == '__main__': main()
