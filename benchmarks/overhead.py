"""Cost of checkpoints and logs in a fit, at the default intervals.

    python benchmarks/overhead.py                                              # the quickstart's model
    python benchmarks/overhead.py --config-name default --steps 6 training.batch_size=8 # the default architecture
    python benchmarks/overhead.py --csv benchmarks/results/overhead.csv

A fit of scenes takes some steps, with three checkpoints and a row of the log (CSV, TensorBoard, and W&B offline) at
each step. Both are timed separately; the remaining time is the steps. Then they are scaled to the configured intervals:
the share of a row is its time over that of `log_interval` steps; the share of a checkpoint is its time over
`save_minutes`, `save_interval` steps or an epoch of scenes, whichever is shortest. With a small batch steps are short
and shares large. """
import argparse
import math
import tempfile
import time
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.run import run_training
from memory_vlm.training.callbacks import CheckpointCallback, LogCallback
from memory_vlm.training.checkpoint import newest_checkpoint
from pathlib import Path
from results import store


class Clock:
    "Replace a method by one that also adds up its time."
    def __init__(self, owner, name):
        self.total, self.calls, method = 0., 0, getattr(owner, name)
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try: return method(*args, **kwargs)
            finally: self.total, self.calls = self.total + time.perf_counter() - start, self.calls + 1
        setattr(owner, name, timed)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--config-name', default='quickstart')
    p.add_argument('--steps', type=int, default=40)
    p.add_argument('--csv', help='append the results to this file')
    p.add_argument('overrides', nargs='*')
    args = p.parse_args()
    asked = compose(args.overrides, config_name=args.config_name).training.logging
    words = ['training.data.train_path=scenes', 'training.data.val_path=scenes:tiny',
             f'training.max_steps={args.steps}', 'training.logging.wandb=true',
             'training.logging.log_interval=1', f'training.logging.save_interval={max(1, args.steps // 3)}']
    learn = make_learner(compose([*args.overrides, *words], config_name=args.config_name))
    saves, writes, evaluations = Clock(CheckpointCallback, 'save'), Clock(LogCallback,
            'after_batch'), Clock(type(learn), 'evaluate')
    fits = Clock(type(learn), 'fit_schedule') # without the start of W&B
    with tempfile.TemporaryDirectory() as d:
        run_training(learn, Path(d), None, None)
        size = sum(p.stat().st_size for p in newest_checkpoint(Path(d)/'checkpoints').iterdir()) / 1e6
    step = (fits.total - saves.total - writes.total - evaluations.total) / args.steps
    save, row_time = saves.total / saves.calls, writes.total / writes.calls
    between = min(min(asked.save_interval, len(learn.dls.train)) * step, 60 * asked.save_minutes or math.inf)
    row = dict(checkpoint_seconds=round(save, 3), checkpoint_MB=round(size), row_seconds=round(row_time, 4),
               step_seconds=round(step, 4),
               checkpoint_share=round(save / between, 5), log_share=round(row_time / (asked.log_interval * step), 5))
    print(*(f'{k:20} {v}' for k, v in row.items()), sep='\n')
    if args.csv: store(args.csv, [dict(config=args.config_name) | row])


if __name__ == '__main__': main()
