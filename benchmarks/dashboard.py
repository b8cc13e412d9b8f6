"""Cost of a `FitDashboard`: time of a training step with it and without it.

    python benchmarks/dashboard.py                     # the quickstart's model on scenes, a redraw every 5 s, 24 blocks
    python benchmarks/dashboard.py --every 5 --blocks 40 model=base training.batch_size=16
    python benchmarks/dashboard.py --csv benchmarks/results/dashboard.csv

One fit is started by the dashboard (and runs in its worker thread). Blocks of steps alternate: a block with the
dashboard ends after one redraw, `every` seconds after it began; the next block takes as many steps with the callback
switched off. Other load on the machine therefore slows both. The ratio is the median of the ratios of neighboring
blocks; its interval is a bootstrap over them. """
import argparse
import asyncio
import numpy as np
import time
from fastai.callback.core import Callback, CancelFitException
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.widgets.fit import DashboardCallback, FitDashboard
from results import machine, store


class TakeTurns(Callback):
    "Switch the dashboard on and off, and record the seconds and steps of each block."
    order = 96 # after the dashboard
    def __init__(self, dash, blocks): self.dash, self.blocks, self.seen = dash, blocks, []

    def switch(self, on):
        self.watcher.run, self.steps, self.start, self.drawn = on, 0, time.perf_counter(), self.dash.redraws
        self.dash._due = self.start + self.dash.every

    def before_fit(self):
        self.watcher, self.warm = next(cb for cb in self.learn.cbs if isinstance(cb, DashboardCallback)), False
    def after_batch(self):
        if not self.warm: self.warm = True; return self.switch(True) # the first step warms up
        self.steps += 1
        on = self.watcher.run
        if on and self.dash.redraws == self.drawn or not on and self.steps < self.seen[-1][1]: return
        self.seen.append((time.perf_counter() - self.start, self.steps))
        if len(self.seen) >= self.blocks: raise CancelFitException
        self.switch(not on)
    def after_fit(self): self.watcher.run = True


def ratio(per_step):
    "Return the median over pairs of neighboring blocks of step time with the dashboard over step time without it."
    return np.median(per_step[0::2] / per_step[1::2])


def interval(per_step, draws=2000):
    "Return the 95 % bootstrap interval of the ratio over the pairs."
    rng, pairs = np.random.default_rng(0), per_step.reshape(-1, 2)
    return np.percentile([ratio(pairs[rng.integers(len(pairs), size=len(pairs))].ravel()) for _ in range(draws)],
            [2.5, 97.5])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('overrides', nargs='*', help='configuration overrides, such as model=base')
    p.add_argument('--every', type=float, default=5., help='seconds between redraws')
    p.add_argument('--blocks', type=int, default=24, help='blocks of steps, half of them with the dashboard')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    learn = make_learner(compose(['training.logging.eval_interval=1000000', *args.overrides], config_name='quickstart'))
    dash = FitDashboard(learn, every=args.every)
    turns = TakeTurns(dash, args.blocks)
    with learn.no_bar(), learn.no_logging(): asyncio.run(dash.fit_cosine(1000, cbs=turns))
    seconds, steps = map(np.array, zip(*turns.seen[:args.blocks // 2 * 2]))
    per_step = seconds / steps
    value, (low, high) = ratio(per_step), interval(per_step)
    without, with_it = np.median(per_step[1::2]), np.median(per_step[0::2])
    drawing = dash.spent / max(dash.redraws, 1)
    print(f'{machine(learn.dls.device.type)}; {learn.cfg.model.name}, batch {learn.cfg.training.batch_size}; redraw '
          f'every {args.every:g} s')
    print(f'step without {without * 1e3:.1f} ms, with {with_it * 1e3:.1f} ms; one redraw {drawing * 1e3:.0f} ms')
    print(f'ratio {value:.4f} (95 % {low:.4f} to {high:.4f}) over {len(seconds)} blocks, {steps.sum()} steps')
    print(f'share of the time spent on redrawing: {drawing / (args.every + drawing):.2%} (reach: at most 3 %)')
    if args.csv:
        store(args.csv, [dict(ratio=f'{value:.4f}', low=f'{low:.4f}', high=f'{high:.4f}',
                              step_ms=f'{without * 1e3:.1f}', redraw_ms=f'{drawing * 1e3:.0f}')],
              learn.dls.device.type, model=learn.cfg.model.name, batch=learn.cfg.training.batch_size, every=args.every)


if __name__ == '__main__': main()
