"""Import time of our modules, compared with that of our dependencies.

    python benchmarks/imports.py

Each line starts fresh interpreters, interleaved with those it is compared with, and gives the median of the ratios or
of the differences. Goals: the model at most 1.15 times torch, timm and open_clip; the loaders at most 1.25 times torch,
because each worker that is not forked imports them; `train.py --help` at most 3 s beyond torch and Hydra.
"""
import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from results import store

ROOT = Path(__file__).parents[1]
MODEL = [sys.executable, '-c', 'from memory_vlm.clip import MemoryCLIP']
BASE = [sys.executable, '-c', 'import torch, timm, open_clip']
LOADERS = [sys.executable, '-c', 'import memory_vlm.data.loaders']
TORCH = [sys.executable, '-c', 'import torch']
HELP = [sys.executable, 'train.py', '--help']
GROUND = [sys.executable, '-c', 'import torch, hydra']


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    rounds = [[seconds(c) for c in (MODEL, BASE, HELP, GROUND, LOADERS, TORCH)] for _ in range(args.rounds + 1)][1:]
    ratio = statistics.median(m / b for m, b, *_ in rounds)
    beyond = statistics.median(h - g for _, _, h, g, *_ in rounds)
    loaders = statistics.median(l / t for *_, l, t in rounds)
    print(f'from memory_vlm.clip import MemoryCLIP: {ratio:.2f} x torch, timm and open_clip')
    print(f'import memory_vlm.data.loaders: {loaders:.2f} x torch')
    print(f'train.py --help: {beyond:.1f} s beyond torch and Hydra')
    if args.csv: store(args.csv, [dict(model_over_base=round(ratio, 3), loaders_over_torch=round(loaders, 3),
                                       help_beyond_seconds=round(beyond, 2))])


if __name__ == '__main__': main()
