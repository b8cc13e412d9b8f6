"""Does a closed start of memory's keys (`model.memory.key_bias=-4`) keep memory from slowing early learning?

    python benchmarks/key_bias.py                 # warm-up of 1.5 epochs, all variants
    python benchmarks/key_bias.py --warmup 0.3    # the short warm-up of the first study
    python benchmarks/key_bias.py --use runs/a    # ablate finished runs: is memory used?

Models, data and steps are those of `benchmarks/study.py --steps 440`: every variant has the same common weights,
batches and seeds. Rule, written before the first run: memory trails if the mean over eight seeds of R@1 (mean of both
ways) is more than 1.5 points below that of the model without memory; the bias helps a mechanism if the paired
difference to the same mechanism without it is positive with an interval (Holm over the mechanisms of the table) that
excludes 0. Finished runs are not repeated. nbs/explain/why_memory_trails.ipynb reads the file of results. """
import argparse
import study as study_benchmark
from memory_vlm.ablation import ablate
from memory_vlm.study import study
from memory_vlm.training.run_dir import open_trained
from pathlib import Path
from results import store

MECHANISMS = {'attention, 16': ['model.memory.num_memory_tokens=16'],
              'attention, 4': ['model.memory.num_memory_tokens=4'],
              'gated, 16': ['model.memory.num_memory_tokens=16', 'model.memory.memory_update=gated'],
              'kv, 16': ['model.memory.num_memory_tokens=16', 'model.memory.memory_update=static',
                         'model.memory.memory_position=kv']}
RESULTS = Path(__file__).parent/'results'/'key_bias.csv'
USE = RESULTS.with_name('key_bias_use.csv')
STEPS = 440


def variants(mechanisms):
    "Return the words of the model without memory and of each mechanism without and with the bias."
    out = {'no memory': ['model/memory=off']}
    for name in mechanisms:
        out |= {name: MECHANISMS[name], f'{name}, bias -4': [*MECHANISMS[name], 'model.memory.key_bias=-4']}
    return out


def measured_use(run):
    "Return the row of a finished run: its score, what masking all memory tokens changes, and the verdict."
    found, cfg = ablate(run), open_trained(run).cfg
    change, low, high = found.changes.loc['mask', 'all'][found.decisive]
    return dict(key_bias=cfg.model.memory.key_bias, seed=cfg.training.seed, images=found.num_images,
                score=found.scores[found.decisive], mask=change, low=low, high=high, verdict=found.verdict)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--warmup', type=float, default=1.5, help='warm-up (epochs)')
    p.add_argument('--seeds', type=int, default=8, help='number of seeds')
    p.add_argument('--only', nargs='+', default=list(MECHANISMS), choices=MECHANISMS, help='mechanisms')
    p.add_argument('--csv', default=RESULTS, help="file of results; '': none")
    p.add_argument('--use', nargs='+', metavar='RUN', help=f'ablate these runs, and add a row of each to {USE.name}')
    args = p.parse_args()
    if args.use: return store(USE, [measured_use(run) for run in args.use])
    base = [*study_benchmark.base(STEPS), f'training.scheduler_kwargs.warmup_epochs={args.warmup}']
    folder = f'runs/benchmark_key_bias/warmup_{args.warmup}'
    runs = study(variants(args.only), range(args.seeds), base, folder=folder)
    if args.csv and (new := study_benchmark.new_rows(runs, args.csv, args.warmup)): store(args.csv, new)


if __name__ == '__main__': main()
