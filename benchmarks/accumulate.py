"""Memory and time of a contrastive batch computed in parts, compared with one batch of the size of a part.

    python benchmarks/accumulate.py                                  # 512 pairs as 8 x 64, and 64; default architecture
    python benchmarks/accumulate.py --batch 8 --parts 2              # small
    python benchmarks/accumulate.py --parts 32                       # 2048 pairs
    python benchmarks/accumulate.py --csv benchmarks/results/accumulate.csv  # also append the results to a file

Each figure comes from a fresh process, which builds the model and its AdamW, takes a step with two pairs, so that
libraries are loaded and the optimizer has its state, resets the kernel's high-water mark, takes one step, and reads the
mark: all resident memory, weights and images included. On CUDA it is the allocator's peak. On a CPU this needs Linux
(/proc). `whole` is the batch computed at once, for which a small machine may lack the memory; --whole measures it. """
import argparse
import os
import subprocess
import sys
import time
import torch
from loss_memory import MiB, resident
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.learner import make_loss
from memory_vlm.training.optim import make_optimizer
from pathlib import Path
from results import machine, store

GOAL = 1.15 # times the memory of one batch, at batch 64 in 8 parts


def make_step(args):
    "Return a function that takes one optimizer step over `parts` parts of `batch` pairs."
    cfg = compose(args.overrides)
    torch.manual_seed(0)
    model, m = MemoryCLIP.from_config(cfg.model).to(args.device).train(), cfg.model
    opt, loss = make_optimizer(model, cfg.training), make_loss(m.contrastive)
    def step(pairs, parts):
        images = torch.randint(0, 256, (pairs, 3, m.image_size, m.image_size), dtype=torch.uint8, device=args.device)
        ids = torch.randint(1, m.text.vocab_size, (pairs, args.words), device=args.device)
        model.num_parts = parts
        loss(model(images, ids), None).backward()
        opt.step()
        opt.zero_grad()
        if args.device == 'cuda': torch.cuda.synchronize()
    return step


def measure(args):
    "Return peak bytes and seconds of one step. Call it in a fresh process."
    step = make_step(args)
    step(2, 1)
    if args.device == 'cuda': torch.cuda.reset_peak_memory_stats()
    else: Path('/proc/self/clear_refs').write_text('5', encoding='utf-8') # resets VmHWM
    start = time.perf_counter()
    step(args.batch * args.parts, args.parts if args.measure == 'parts' else 1)
    seconds = time.perf_counter() - start
    return torch.cuda.max_memory_allocated() if args.device == 'cuda' else resident('VmHWM'), seconds


def measured(args, kind, parts):
    "Run `measure` in a fresh process."
    command = [sys.executable, __file__, '--measure', kind, '--batch', args.batch, '--parts', parts, '--words',
               args.words, '--device', args.device, '--threads', args.threads, *args.overrides]
    out = subprocess.run([str(c) for c in command], check=True, capture_output=True, encoding='utf-8').stdout.split()
    return int(out[0]), float(out[1])


def parse():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('overrides', nargs='*', help='configuration overrides, such as model=tiny')
    p.add_argument('--batch', type=int, default=64, help='pairs per part')
    p.add_argument('--parts', type=int, default=8, help='parts of the large batch')
    p.add_argument('--words', type=int, default=32, help='length of the captions (tokens)')
    p.add_argument('--whole', action='store_true', help='also measure the large batch computed at once')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--threads', type=int, default=os.cpu_count(), help='CPU threads')
    p.add_argument('--csv', type=Path, help='append the results to this file')
    p.add_argument('--measure', choices=['parts', 'whole'], help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    if args.measure: return print(*measure(args))
    print(f'{machine(args.device)}, torch {torch.__version__}\n')
    kinds = dict(one=('whole', 1), parts=('parts', args.parts)) | (dict(whole=('whole', args.parts)) if args.whole
                                                                   else {})
    rows, one = [], None
    print(f"{'':8}{'pairs':>8}{'MiB':>10}{'seconds':>10}")
    for name, (kind, parts) in kinds.items():
        peak, seconds = measured(args, kind, parts)
        one = one or peak
        print(f'{name:8}{args.batch * parts:8}{peak / MiB:10.0f}{seconds:10.2f}')
        rows.append(dict(kind=name, pairs=args.batch * parts, mib=f'{peak / MiB:.0f}', seconds=f'{seconds:.2f}',
                         times_one=f'{peak / one:.3f}'))
    ratio, is_goal = float(rows[1]['times_one']), (args.batch, args.parts, args.overrides) == (64, 8, [])
    print(f'\n{ratio:.3f} times the memory of one part'
          + (f"  ({'meets' if ratio <= GOAL else 'MISSES'} <= {GOAL})" if is_goal else ''))
    if args.csv: store(args.csv, rows, args.device, batch=args.batch, parts=args.parts, words=args.words,
                       overrides=' '.join(args.overrides), threads=args.threads)


if __name__ == '__main__': main()
