"""Cost of detecting dead memory tokens per training step, at the default architecture.

    python benchmarks/resets.py                     # batch 8 on the CPU, or batch 256 on CUDA if there is one
    python benchmarks/resets.py --csv benchmarks/results/resets.csv

Usage is measured in 8 steps of each window of `mem_reinit_steps`, so most steps have no extra cost. Three kinds of step
are interleaved: a plain step, a step in which usage is measured, and a plain step that ends a window with one token
reset. The order rotates with the rounds; extra time is the median over rounds of the differences within a round, and

    overhead = (8 x extra of a measured step + extra of a reset) / (mem_reinit_steps x a plain step).

A step is forward, loss, backward, clipping to norm 1, optimizer, and setting gradients to None. On a shared
machine, `--clock cpu --threads 1` measures processor time instead of wall-clock time.
"""
import argparse
import statistics
import time
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.tokenizer import tokenize, trim
from memory_vlm.learner import make_loss
from memory_vlm.training.optim import make_optimizer
from memory_vlm.training.resets import MIN_SAMPLES, MemoryResetCallback
from results import machine, store
from train_step import captions, step
from types import SimpleNamespace

GOAL = 0.02 # share of the step time


def one_token_is_dead(resets):
    "Make the next window find token 3 dead, independent of its measurement."
    resets.to_reset = lambda usage: torch.arange(usage.shape[1]).expand_as(usage) == 3


def ways(args):
    "Return the three kinds of step."
    cfg = compose(['training.learning_rate=1e-5', *args.overrides])
    model, loss = MemoryCLIP.from_config(cfg.model).to(args.device), make_loss(cfg.model.contrastive)
    opt = make_optimizer(model, cfg.training)
    images = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8, device=args.device)
    ids = trim(tokenize(captions(args.batch))).to(args.device)
    resets = MemoryResetCallback(model, cfg.model.memory.mem_reinit_steps)
    resets.learn = SimpleNamespace(train_iter=0, xb=(images, ids), opt=opt, dls=SimpleNamespace(train=[0]),
                                   training=True)
    one_token_is_dead(resets)
    def plain(): step(args, model, opt, lambda: loss(model(images, ids), None))
    def measured():
        resets.usage.record(resets.hooks)
        plain()
        resets.hooks.close()
    def reset():
        plain()
        resets.end_window()
    return dict(plain=plain, measured=measured, reset=reset), cfg.model.memory.mem_reinit_steps


def seconds(args, f):
    clock = time.process_time if args.clock == 'cpu' else time.perf_counter
    if args.device == 'cuda': torch.cuda.synchronize()
    start = clock()
    f()
    if args.device == 'cuda': torch.cuda.synchronize()
    return clock() - start


def main():
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('overrides', nargs='*', help='configuration overrides, such as model.memory.memory_init=patches')
    p.add_argument('--device', default='cuda' if cuda else 'cpu')
    p.add_argument('--batch', type=int, help='pairs; 8 on the CPU, 256 on CUDA')
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--threads', type=int, help='CPU threads')
    p.add_argument('--clock', choices=['wall', 'cpu'], default='wall', help='wall-clock time or processor time')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    args.batch = args.batch or (256 if args.device == 'cuda' else 8)
    if args.threads: torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps, window = ways(args)
    names, rounds = list(steps), []
    for i in range(args.rounds + 1):
        order = names[i % 3:] + names[:i % 3]
        rounds.append({name: seconds(args, steps[name]) for name in order})
    rounds = rounds[1:] # the first warms up
    plain = statistics.median(r['plain'] for r in rounds)
    extra = {name: statistics.median(r[name] - r['plain'] for r in rounds) for name in ('measured', 'reset')}
    overhead = (MIN_SAMPLES * extra['measured'] + extra['reset']) / (window * plain)
    print(f'{args.precision}, batch {args.batch}, {machine(args.device)}, torch {torch.__version__}\n'
          f'plain step     {plain:8.3f} s\nmeasured step  {extra["measured"]:+8.3f} s\nreset          '
          f'{extra["reset"]:+8.3f} s\n'
          f'overhead       {overhead:8.2%} of a window of {window} steps ({"meets" if overhead <= GOAL else "MISSES"} '
          f'<= {GOAL:.0%})')
    row = dict(plain_seconds=round(plain, 4), measured_extra=round(extra['measured'], 4),
               reset_extra=round(extra['reset'], 4), window=window, overhead=round(overhead, 5))
    if args.csv: store(args.csv, [row], device=args.device, batch=args.batch, precision=args.precision,
                        clock=args.clock, threads=torch.get_num_threads(), overrides=' '.join(args.overrides))


if __name__ == '__main__': main()
