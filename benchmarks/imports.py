"""Import time of our modules, compared with that of our dependencies.

    python benchmarks/imports.py

Each line starts fresh interpreters, interleaved with those it is compared with, and gives the median of the ratios or
of the differences. Goals: the model at most 1.15 times torch, timm and open_clip; `train.py --help` at most 3 s beyond
torch and Hydra.
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
    rounds = [[seconds(c) for c in (MODEL, BASE, HELP, GROUND)] for _ in range(args.rounds + 1)][1:]
    ratio = statistics.median(m / b for m, b, _, _ in rounds)
    beyond = statistics.median(h - g for _, _, h, g in rounds)
    print(f'from memory_vlm.clip import MemoryCLIP: {ratio:.2f} x torch, timm and open_clip')
    print(f'train.py --help: {beyond:.1f} s beyond torch and Hydra')
    if args.csv: store(args.csv, [dict(model_over_base=round(ratio, 3), help_beyond_seconds=round(beyond, 2))])


if __name__ == '__main__': main()
