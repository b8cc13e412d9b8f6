"""Time that the checks before a fit take (s), at the default architecture, and predicted beside measured memory.

    python benchmarks/preflight.py                                      # built-in scenes
    python benchmarks/preflight.py training.data.train_path=data/train training.data.val_path=data/val
    python benchmarks/preflight.py --csv benchmarks/results/preflight.csv
    python benchmarks/preflight.py --memory --csv benchmarks/results/preflight_memory.csv # Linux

One process makes the learner and runs the checks once, without warm-up, as `train.py` does. With `--memory`, fresh
processes train two steps of a model of 50 M parameters: the largest resident memory above that of a tiny fit
before it, in one process and on two ranks with DDP and with `training.fsdp`, beside the prediction.
"""
import argparse
import gc
import json
import os
import re
import socket
import subprocess
import sys
import time
import torch
from memory_vlm.config import compose
from memory_vlm.distributed import process_group
from memory_vlm.learner import make_learner
from memory_vlm.training import preflight as checks
from memory_vlm.training.preflight import preflight
from pathlib import Path
from results import store

GOAL = 10. # seconds, on 2 cores
ERROR = 0.15 # of the predicted memory
DATA = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.data.num_workers=0',
        'training.data.cache_mb=0', 'training.logging.wandb=false']
WIDE = ['model=base', 'model.image_size=64', 'model.embed_dim=512', 'model.depth=6', 'model.text.depth=2',
        'training.precision=fp32']
SETTINGS = { # name -> world size, overrides
    'weights count': (1, ['training.batch_size=2']),
    'activations count': (1, ['training.batch_size=32']),
    'checkpointing': (1, ['training.batch_size=32', 'training.grad_checkpointing=true']),
    'bf16': (1, ['training.batch_size=16', 'training.precision=bf16']),
    'accumulation': (1, ['training.batch_size=16', 'training.accumulate_grad_batches=2']),
    'frozen text, lion': (1, ['training.batch_size=16', 'training.freeze=text', 'training.optimizer=lion']),
    'DDP': (2, ['training.batch_size=2']),
    'DDP, larger batch': (2, ['training.batch_size=12']),
    'fsdp': (2, ['training.batch_size=2', 'training.fsdp=true']),
    'fsdp, larger batch': (2, ['training.batch_size=12', 'training.fsdp=true'])}


def resident(peak=False):
    "Return the resident memory of this process, or its largest (bytes)."
    key = 'VmHWM' if peak else 'VmRSS'
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024


def fitted(words, steps):
    learn = make_learner(compose([*DATA, *words, f'training.max_steps={steps}']))
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule('constant', 1)
    return learn


def measure(words):
    "Print the memory of a fit that is predicted and the memory that it took, as JSON."
    torch.set_num_threads(1)
    own = [w for w in words if not w.startswith('model')]
    with process_group():
        fitted(['model=tiny', *own], 1)
        gc.collect()
        Path('/proc/self/clear_refs').write_text('5') # forget the largest memory so far
        before = resident()
        learn = fitted(words, 2)
        took = resident(peak=True) - before
        t, world = learn.cfg.training, int(os.environ['WORLD_SIZE'])
        needs = checks._rank_memory(learn.model, t, world, t.fsdp, checks._try_step(learn, seconds=0)[1])
        if os.environ['RANK'] == '0': print(json.dumps(dict(predicted=needs.total, measured=took, parts=str(needs))))


def run_memory(names):
    "Run each setting in processes of its own; yield rows."
    for name in names:
        world, words = SETTINGS[name]
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        env = os.environ | dict(WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                                MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0') # freed memory goes back
        command = [sys.executable, __file__, '--measure', *WIDE, *words]
        ranks = [subprocess.Popen(command, env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE,
                                  encoding='utf-8') for r in range(world)]
        said = [p.communicate()[0] for p in ranks]
        assert not any(p.returncode for p in ranks), name
        found = json.loads(said[0].strip().splitlines()[-1])
        error = found['predicted'] / found['measured'] - 1
        print(f"{name:20} {found['predicted'] / 1e9:6.3f} GB predicted, {found['measured'] / 1e9:6.3f} measured: "
              f"{error:+.0%} ({'meets' if abs(error) <= ERROR else 'MISSES'} {ERROR:.0%})  {found['parts']}",
              flush=True)
        yield dict(setting=name, ranks=world, predicted_gb=round(found['predicted'] / 1e9, 3),
                   measured_gb=round(found['measured'] / 1e9, 3), error=round(error, 3))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--csv', help='append the result to this file')
    p.add_argument('--memory', nargs='*', choices=list(SETTINGS), help='compare memory instead; settings, or all')
    p.add_argument('--measure', action='store_true', help=argparse.SUPPRESS)
    p.add_argument('overrides', nargs='*', help='configuration overrides')
    args = p.parse_args()
    if args.measure: return measure(args.overrides)
    if args.memory is not None:
        rows = list(run_memory(args.memory or SETTINGS))
        if args.csv: store(args.csv, rows, overrides=' '.join(WIDE))
        return
    cfg = compose(['training.data.train_path=scenes', 'training.data.val_path=scenes', *args.overrides])
    learn = make_learner(cfg)
    start = time.perf_counter()
    lines = preflight(learn)
    took = time.perf_counter() - start
    print(*lines, f'{took:.1f} s ({"meets" if took <= GOAL else "MISSES"} <= {GOAL:g})', sep='\n')
    if args.csv: store(args.csv, [dict(seconds=round(took, 2))], overrides=' '.join(args.overrides))


if __name__ == '__main__': main()
