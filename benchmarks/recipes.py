"""Results and cost of the recipes in configs/experiment, over three seeds.

    python benchmarks/recipes.py
    python benchmarks/recipes.py --only stamps --csv benchmarks/results/recipes.csv
    python benchmarks/recipes.py --show                  # only show the table of the CSV

Each fit is `python train.py experiment=NAME training.seed=SEED`. Only recipes that need no download are fitted; the
first lines of the others say that they were not run. Rows in the CSV are not fitted again and an interrupted fit is
resumed, so the command can be stopped at any time. `cpu_seconds` is processor time of the whole run including its
report, which depends less on other load than wall-clock time; divided by the number of cores it is about the time on an
idle machine. """
import argparse
import pandas as pd
import time
import torch
from memory_vlm.config import compose
from memory_vlm.evaluation.retrieval import chance_recall
from memory_vlm.run import fit
from pathlib import Path
from results import store

RECIPES = ('scenes_easy', 'scenes_hard', 'scenes_pairs', 'gated_registers', 'stamps')
RESULTS = Path(__file__).parent/'results'/'recipes.csv'
METRICS = ('i2t/R@1', 'i2t/R@5', 't2i/R@1', 't2i/R@5')


def row(recipe, seed, folder):
    "Fit a recipe once."
    words = [f'experiment={recipe}', f'training.seed={seed}', 'training.resume=auto',
             f'training.run_dir={folder}/{recipe}/seed{seed}']
    begin = time.process_time()
    run = fit(compose(words))
    if run.interrupted: raise KeyboardInterrupt
    seconds, source = time.process_time() - begin, run.learn.dls.valid.source
    texts = [(i, text) for i in range(len(source)) for text in source.captions(i)]
    owners, numbers = torch.tensor([i for i, _ in texts]), {text: n for n, (_, text) in enumerate(texts)}
    captions = torch.tensor([numbers[text] for _, text in texts]) # equal texts are one caption
    return dict(recipe=recipe, seed=seed, train=len(run.learn.dls.train.source), valid=len(source),
                steps=run.learn.train_iter,
                **{m: round(run.metrics[m], 4) for m in METRICS},
                chance=round(chance_recall(owners, captions=captions)['i2t/R@1'], 4),
                cpu_seconds=round(seconds), threads=torch.get_num_threads())


def table(runs):
    "Return a row per recipe: mean and standard deviation over seeds, chance level, and processor time."
    groups = runs.groupby('recipe', sort=False)
    spread = {m: [f'{mean:.1%} ± {std:.1%}' for mean, std in zip(groups[m].mean(), groups[m].std())] for m in METRICS}
    minutes = (groups.cpu_seconds.mean() / 60).round(1)
    return pd.DataFrame(dict(seeds=groups.seed.nunique(), steps=groups.steps.first(), images=groups.valid.first(),
                             chance=groups.chance.first().map('{:.1%}'.format)) | spread | dict(cpu_minutes=minutes))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', choices=RECIPES, default=RECIPES)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--csv', default='runs/recipes.csv', help='file with the rows; each fit appends one')
    p.add_argument('--show', action='store_true', help=f'only show the table of {RESULTS.name}')
    args = p.parse_args()
    path = RESULTS if args.show else Path(args.csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set(pd.read_csv(path)[['recipe', 'seed']].itertuples(index=False, name=None)) if path.exists() else set()
    for recipe, seed in [(r, s) for r in args.only for s in range(args.seeds)] * (not args.show):
        if (recipe, seed) not in done: store(path, [row(recipe, seed, 'runs/recipes')])
    print(table(pd.read_csv(path)).to_string())


if __name__ == '__main__': main()
