"""Does memory help a small CLIP on scenes, and which mechanism?

    python benchmarks/study.py                      # the headline: no memory and three mechanisms, 1760 steps, 5 seeds
    python benchmarks/study.py --all --steps 440    # also 4 tokens, and tokens that are never trained

Every variant gets the same steps, batches, seeds and common weights, a warm-up of 1.5 epochs, and no resets. Frozen
tokens (`memory_init=frozen`) cost the same computation as trained ones, so a difference between the two comes from what
the tokens learned. `kv` has its tokens in every layer. The model is smaller than the quickstart's. Runs are kept in
runs/benchmark_study: call the command again after an interrupt, and it reads finished runs and resumes the others. New
rows are appended to benchmarks/results/study.csv with their date; `steps` is the number of steps that were taken.
Intervals and p-values are corrected for the number of comparisons. nbs/tutorials/5_a_study.ipynb reads the file. """
import argparse
import pandas as pd
from memory_vlm.study import paired_differences, study, summarize
from pathlib import Path
from results import store

MECHANISMS = {'attention': [], 'gated': ['model.memory.memory_update=gated'],
              'kv': ['model.memory.memory_update=static', 'model.memory.memory_position=kv']}
FROZEN = ['model.memory.memory_init=frozen']


def tokens(number): return [f'model.memory.num_memory_tokens={number}']


VARIANTS = {'no memory': ['model/memory=off']}
VARIANTS |= {f'{name}, {number}': [*words, *tokens(number)] for name, words in MECHANISMS.items() for number in (4, 16)}
VARIANTS |= {f'{name}, 16, frozen': [*words, *tokens(16), *FROZEN] for name, words in MECHANISMS.items()}
HEADLINE = {name: VARIANTS[name] for name in ('no memory', *(f'{m}, 16' for m in MECHANISMS))}
WARMUP = 1.5 # epochs
SMALL = ['model.image_size=64', 'model.patch_size=16', 'model.embed_dim=64', 'model.num_heads=2',
         'model.text.embed_dim=64', 'model.text.depth=1', 'model.text.num_heads=2',
         'training.batch_size=64', 'training.optimizer=adamw', 'training.learning_rate=2e-3',
         'training.optimizer_kwargs.betas=[0.9,0.999]', f'training.scheduler_kwargs.warmup_epochs={WARMUP}',
         'training.logging.eval_interval=10000', 'training.logging.tensorboard=false',
         'training.checkpoint.save_last=false', 'training.checkpoint.save_top_k=0']


def base(steps):
    "Return the overrides of all runs. `steps` epochs are enough for `steps` steps, so that the epochs never end first."
    return [*SMALL, 'model.memory.mem_reinit_steps=0', f'training.max_steps={steps}', f'training.epochs={steps}']


def new_rows(runs, path, warmup=WARMUP):
    "Return the rows of runs that are not in a file of results."
    key = ['steps', 'variant', 'seed', 'warmup_epochs']
    rows = runs.drop(columns='folder').assign(warmup_epochs=warmup).round(5)
    known = pd.read_csv(path)[key] if Path(path).exists() else rows[key][:0]
    known = {tuple(map(str, k)) for k in known.astype(rows[key].dtypes).itertuples(index=False)}
    return [r for r in rows.to_dict('records') if tuple(str(r[k]) for k in key) not in known]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=1760, help='optimizer steps of each run')
    p.add_argument('--seeds', type=int, default=5, help='number of seeds')
    p.add_argument('--all', action='store_true', help='all ten variants, not only the headline')
    p.add_argument('--csv', default=Path(__file__).parent/'results'/'study.csv', help="file of results; '': none")
    args = p.parse_args()
    folder = f'runs/benchmark_study/{args.steps}_steps_warmup_{WARMUP}'
    runs = study(VARIANTS if args.all else HEADLINE, range(args.seeds), base(args.steps), folder=folder)
    print(summarize(runs), paired_differences(runs, 'no memory'), sep='\n\n')
    assert (runs.steps == args.steps).all(), runs.steps.unique()
    if args.csv and (rows := new_rows(runs, args.csv)): store(args.csv, rows)


if __name__ == '__main__': main()
