"""What checkpoints and logs cost a fit, at the default intervals.

    python benchmarks/overhead.py                                        # the quickstart's model
    python benchmarks/overhead.py --config-name default --steps 3 training.batch_size=8 # the default architecture
    python benchmarks/overhead.py --csv benchmarks/results/overhead.csv

A fit of scenes takes some steps, with a checkpoint at the end and a row of the log as often as the configuration says
(CSV, TensorBoard, and W&B offline). Checkpoints and log calls are timed where they happen; the rest is the steps.
A checkpoint's share is its time beside that of `save_interval` steps, or of an epoch if that is shorter.
"""
import argparse, tempfile, time
from pathlib import Path
from memory_vlm.callbacks import CheckpointCallback, LogCallback
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.run import go_on
from results import store


class Clock:
    "Adds up the time in a method, by replacing it."
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
    p.add_argument('--csv', help='append the figures to this file')
    p.add_argument('overrides', nargs='*')
    args = p.parse_args()
    words = ['training.data.train_path=scenes', 'training.data.val_path=scenes:tiny', f'training.max_steps={args.steps}', 'training.logging.wandb=true']
    learn = make_learner(compose([*words, *args.overrides], config_name=args.config_name))
    saves, writes, evaluations = Clock(CheckpointCallback, 'save'), Clock(LogCallback, 'after_batch'), Clock(type(learn), 'evaluate')
    with tempfile.TemporaryDirectory() as d:
        start = time.perf_counter()
        go_on(learn, Path(d), None, None)
        whole = time.perf_counter() - start
        size = sum(p.stat().st_size for p in Path(d).glob('checkpoints/**/*')) / 1e6
    steps = whole - saves.total - writes.total - evaluations.total
    between = min(learn.cfg.training.logging.save_interval, len(learn.dls.train)) * steps / args.steps
    row = dict(checkpoint_seconds=round(saves.total / saves.calls, 3), checkpoint_MB=round(size), step_seconds=round(steps / args.steps, 4),
               checkpoint_share=round(saves.total / saves.calls / between, 5), log_share=round(writes.total / steps, 5))
    print(*(f'{k:20} {v}' for k, v in row.items()), sep='\n')
    if args.csv: store(args.csv, [dict(config=args.config_name) | row])


if __name__ == '__main__': main()
