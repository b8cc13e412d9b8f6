"""Results of every memory preset on scenes with three seeds; tests compare later versions with them.

    python benchmarks/presets.py
    python benchmarks/presets.py --csv benchmarks/results/presets.csv

Uses the small model of study.py; a run takes at most half a minute of one CPU core. tests/test_presets.py fits every
preset once and checks that its loss lies in the band that `bands` computes from the file: four standard deviations over
seeds to each side. One new seed in 400 falls outside by chance; a tenth of the learning rate does too. Write the file
again only when a change is meant to change what is learned, and say so in the commit.
"""
import argparse
from memory_vlm.config import config_dir
from memory_vlm.study import study, summarize
from pathlib import Path
from results import store
from study import SMALL

PRESETS = sorted(p.stem for p in (config_dir()/'model'/'memory').glob('*.yaml'))
BASE = [*SMALL, 'training.scheduler_kwargs.warmup_epochs=0.55', 'training.max_steps=150'] # a third of the steps
WIDTHS = 4 # standard deviations over seeds, to each side


def bands(runs):
    "Return the lowest and highest passing loss of each preset."
    losses = runs.groupby('variant').val_loss
    spread = losses.var().mean()**0.5 # pooled over presets: three seeds of one preset say little about its spread
    return {preset: (mean - WIDTHS * spread, mean + WIDTHS * spread) for preset, mean in losses.mean().items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--csv', help='write the runs to this file')
    args = p.parse_args()
    runs = study({preset: [f'model/memory={preset}'] for preset in PRESETS}, range(args.seeds), BASE,
                 folder='runs/benchmark_presets')
    print(summarize(runs, ['val_loss', 'i2t/R@1']))
    for preset, (low, high) in bands(runs).items(): print(f'{preset:27} {low:.3f} to {high:.3f}')
    if args.csv:
        Path(args.csv).unlink(missing_ok=True)
        store(args.csv, runs.drop(columns='folder').round(5).to_dict('records'))


if __name__ == '__main__': main()
