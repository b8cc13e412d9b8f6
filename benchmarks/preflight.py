"""Time that the checks before a fit take (s), at the default architecture.

    python benchmarks/preflight.py                                      # built-in scenes
    python benchmarks/preflight.py training.data.train_path=data/train training.data.val_path=data/val
    python benchmarks/preflight.py --csv benchmarks/results/preflight.csv

One process makes the learner and runs the checks once, without warm-up, as `train.py` does.
"""
import argparse
import time
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.training.preflight import preflight
from results import store

GOAL = 10. # seconds, on 2 cores


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--csv', help='append the result to this file')
    p.add_argument('overrides', nargs='*', help='configuration overrides')
    args = p.parse_args()
    cfg = compose(['training.data.train_path=scenes', 'training.data.val_path=scenes', *args.overrides])
    learn = make_learner(cfg)
    start = time.perf_counter()
    lines = preflight(learn)
    took = time.perf_counter() - start
    print(*lines, f'{took:.1f} s ({"meets" if took <= GOAL else "MISSES"} <= {GOAL:g})', sep='\n')
    if args.csv: store(args.csv, [dict(seconds=round(took, 2))], overrides=' '.join(args.overrides))


if __name__ == '__main__': main()
