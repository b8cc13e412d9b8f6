"""Does memory that is read answer more captions of one image than CLS?

    python benchmarks/readout.py                           # eight arms, 1100 steps, 5 seeds
    python benchmarks/readout.py --arms CLS "memory, maxsim" --steps 2200 --tokens 8

Scenes of 3 to 5 objects (`scenes:pairs`), each caption names one object or one relation. Combinations that were never
trained are evaluated, with every caption of every scene; the rows without a value in the column `val` were evaluated on
`scenes`, two objects and one caption for both. Captions true of another image of the batch are left out of the loss.
All arms have the same common weights, batches, steps and schedule; memory starts with closed keys
(`model.memory.key_bias=-4`). Arms without memory whose images also have K vectors are the controls: K projections of
CLS, and the K quarters of the grid of patches, pooled; captions are compared with the nearest vector (MaxSim), or with
a mixture of them by the caption (`caption`).

Rule, written before the first run: memory that is read helps if the mean over seeds of R@1 (mean of both ways) is above
that of CLS **and** above that of the K projections of CLS, both with an interval (Holm over the two comparisons) that
excludes 0. Finished fits are not repeated: the file of results is the record. """
import argparse
import pandas as pd
import torch
import torch.nn.functional as F
from memory_vlm.config import compose
from memory_vlm.core import seed_everything
from memory_vlm.evaluation.retrieval import hits_per_image, ranking_metrics
from memory_vlm.evaluation.validation import encode
from memory_vlm.learner import make_learner
from memory_vlm.study import paired_differences
from memory_vlm.vision import MemoryViT
from pathlib import Path
from results import store
from torch import nn

RESULTS = Path(__file__).parent/'results'/'readout.csv'
BASE = ['experiment=scenes_pairs', 'training.logging.eval_interval=100000', 'training.logging.name=readout']
OFF = ['model/memory=off']


class ClsProjections(MemoryViT):
    "K vectors of an image: K projections of CLS."
    def start(self, number, dim):
        self.projections = nn.Linear(self.embed_dim, number * dim, bias=False)
        nn.init.normal_(self.projections.weight, std=self.embed_dim ** -0.5)

    def vectors(self, images):
        cls = self.head_drop(self.fc_norm(self.forward_features(images)[:, 0]))
        return F.normalize(self.projections(cls).unflatten(-1, (-1, self.head.out_features)), dim=-1)


class PatchQuarters(MemoryViT):
    "K vectors of an image: the mean patch of each part of a grid of K parts, projected by the head."
    def start(self, number, dim):
        self.side = int(number ** .5)
        if self.side ** 2 != number: raise SystemExit(f'{number} is not a square number of parts')

    def memory_outputs(self, x):
        patches = x[:, self.layout.patches].mT.unflatten(-1, self.layout.grid)
        return self.head_drop(self.fc_norm(F.adaptive_avg_pool2d(patches, self.side).flatten(2).mT))


READ = {f'memory, {r}': ([f'model.memory.readout={r}'], None) for r in ('maxsim', 'caption', 'mean')}
ARMS = {'CLS': (OFF, None), 'CLS, K projections': (OFF, ClsProjections), **READ,
        'patches, K parts': (OFF, PatchQuarters), 'memory, not read': ([], None),
        'CLS, K projections, caption': (OFF, ClsProjections), 'patches, K parts, caption': (OFF, PatchQuarters)}


def fitted(arm, seed, args):
    "Return a learner after its fit."
    words, control = ARMS[arm]
    cfg = compose([*BASE, f'training.seed={seed}', f'training.max_steps={args.steps}', f'training.epochs={args.steps}',
                   f'model.proj_dim={args.dim}', f'model.memory.num_memory_tokens={args.tokens}',
                   f'training.data.val_path={args.val}', *words])
    learn = make_learner(cfg)
    if control is not None:
        vit = learn.model.visual
        vit.__class__ = control
        vit.start(args.tokens, args.dim)
        vit.set_readout('caption' if arm.endswith('caption') else 'maxsim')
        if vit.readout == 'caption': learn.model.query = nn.Parameter(torch.eye(args.dim))
        learn.create_opt()
        seed_everything(seed)
    with learn.no_logging(), learn.no_bar(): learn.fit_schedule(cfg.training.scheduler)
    if learn.interrupted: raise SystemExit('interrupted; the same command starts with this fit')
    return learn


def by_objects(hits, queries, scenes):
    "Return R@1 of both ways over the scenes of each number of objects, from hits and queries of each image (N, 2)."
    objects = torch.tensor([len(scene.objects) for scene in scenes])
    share = {n: hits[objects == n].sum(0) / queries[objects == n].sum(0) for n in objects.unique().tolist()}
    return {f'{way}/R@1, {n} objects': r[k].item() for k, way in enumerate(('i2t', 't2i')) for n, r in share.items()}


def measured(arm, seed, args):
    "Return the row of a fit."
    learn = fitted(arm, seed, args)
    images, texts, owner, captions = encode(learn.model, learn.dls.valid)
    found = ranking_metrics(images, texts, owner, ks=(5,), captions=captions)
    hits, texts_each = hits_per_image(images, texts, owner, (1,), captions=captions), owner.bincount()
    queries = torch.stack([torch.ones_like(texts_each), texts_each], 1)
    found |= by_objects(hits, queries, learn.dls.valid.source.scenes)
    last = {k: v for k, v in learn.evaluation.items() if k not in ('step', 'epoch')}
    mean = (last['i2t/R@1'] + last['t2i/R@1']) / 2
    return dict(variant=arm, seed=seed, steps=args.steps, tokens=args.tokens, dim=args.dim, val=args.val, mean=mean,
                **last | found, params=sum(p.numel() for p in learn.model.parameters()))


def finished(path, args):
    "Return the rows of these settings."
    if not path.exists(): return pd.DataFrame(columns=['variant', 'seed'])
    rows = pd.read_csv(path)
    rows = rows.assign(val=rows.val.fillna('scenes') if 'val' in rows else 'scenes')
    settings = [(rows[name] == getattr(args, name)) for name in ('val', 'steps', 'tokens', 'dim')]
    return rows[pd.concat(settings, axis=1).all(axis=1)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=1100, help='optimizer steps of each fit')
    p.add_argument('--seeds', type=int, default=5, help='number of seeds')
    p.add_argument('--tokens', type=int, default=4, help='memory tokens, and vectors of the controls (K)')
    p.add_argument('--dim', type=int, default=64, help='width of the embedding')
    p.add_argument('--val', default='scenes:pairs', help='data of the evaluation')
    p.add_argument('--arms', nargs='+', default=list(ARMS), choices=ARMS, help='arms')
    p.add_argument('--csv', type=Path, default=RESULTS, help='file of results')
    args = p.parse_args()
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        for arm in args.arms:
            done = finished(args.csv, args)
            if ((done.variant == arm) & (done.seed == seed)).any(): continue
            row = {k: round(v, 5) if isinstance(v, float) else v for k, v in measured(arm, seed, args).items()}
            print(row, flush=True)
            store(args.csv, [row])
    rows = finished(args.csv, args)
    print(rows.groupby('variant', sort=False)[['i2t/R@1', 't2i/R@1', 'mean']].agg(['mean', 'std']).round(4))
    for arm in [a for a in READ if a in set(rows.variant)]: # Holm over the two comparisons of the rule
        compared = rows[rows.variant.isin([arm, 'CLS', 'CLS, K projections'])]
        if compared.variant.nunique() > 1: print(paired_differences(compared, arm, 'mean').round(4))


if __name__ == '__main__': main()
