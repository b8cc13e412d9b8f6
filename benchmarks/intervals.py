"""Coverage of the 95 % intervals and false alarms of the ablation verdict, over simulated data with a known truth.

    python benchmarks/intervals.py
    python benchmarks/intervals.py --repeats 1000 --csv benchmarks/results/intervals.csv

Each repeat draws per-image results for `images` images and asks whether the interval contains the true value. Recall has
one or five captions per image, whose hits are correlated within the image. Goals at 128 images and more: 93 to 97 % (more
where nothing or nearly nothing changes, because counts are discrete), and at most 5 % of the models without an effect of
memory called used."""
import argparse
import numpy as np
import sys
import torch
from memory_vlm.ablation import _summarize
from memory_vlm.evaluation.compare import Comparison, _make_score
from memory_vlm.interp.intervene import KINDS
from memory_vlm.interp.stats import shares
from memory_vlm.report import _image_rows
from memory_vlm.study import paired_differences
from memory_vlm.tokens import TokenLayout
from pathlib import Path
from results import store

sys.path.insert(0, str(Path(__file__).resolve().parent))
DRAWS = 400 # bootstrap samples


def correlated_hits(rng, images, captions, recall, spread=0.25):
    "Return hits (images, captions) of a true recall; captions of one image are correlated."
    a = recall / spread - recall
    p = rng.beta(a, a * (1 - recall) / recall, size=(images, 1))
    return rng.random((images, captions)) < p


def recall_interval(rng, images, captions, recall):
    hits = correlated_hits(rng, images, captions, recall)
    owner = torch.arange(images).repeat_interleave(captions)
    score = _make_score(torch.from_numpy(hits.flatten()), owner=owner)
    return score.low <= recall <= score.high


def difference_interval(rng, images, lost, won):
    before = rng.random(images) < 0.7
    loses, wins = rng.random(images) < lost / 0.7, rng.random(images) < won / 0.3
    after = np.where(before, ~loses, wins)
    scores = {name: dict(r=_make_score(torch.from_numpy(x))) for name, x in dict(a=before, b=after).items()}
    _, low, high = Comparison('', scores).differences()['b']['r']
    return low <= won - lost <= high


def ablation_hits(rng, images, lost, won):
    "Return hits of all kinds, where each loses and wins hits at random."
    before = np.repeat(rng.random((images, 2)) < 0.7, 3, 1)
    hits = {None: torch.from_numpy(before).double()}
    for kind in KINDS:
        loses, wins = (np.repeat(rng.random((images, 2)) < p, 3, 1) for p in (lost / 0.7, won / 0.3))
        hits[kind, 'all'] = torch.from_numpy(np.where(before, ~loses, wins)).double()
    return hits


def ablation_interval(rng, images, lost, won):
    found = _summarize(ablation_hits(rng, images, lost, won), torch.arange(images), {}, DRAWS)
    row = found.changes['R@1'].loc[('mask', 'all')]
    return row['low'] <= won - lost <= row['high']


def false_alarm(rng, images, changed, noise=None):
    hits = ablation_hits(rng, images, changed, changed)
    if noise: # ignored memory that attracts attention once it is outside its distribution
        hits |= {k: v for k, v in ablation_hits(rng, images, noise, 0).items() if k in (('noise', 'all'), ('reinit', 'all'))}
    return _summarize(hits, torch.arange(images), {}, DRAWS).verdict != 'unused'


def report_interval(rng, images, row):
    M, D, variance = 4, 16, 0.3
    mean = np.sqrt((1 - variance) / D)
    state = torch.from_numpy(rng.normal(mean, np.sqrt(variance / D), (images, 1, M, D))).float()
    usage = torch.from_numpy(rng.gamma(5, 1 / 5, (images, 1, M))).float()
    p = shares(usage)
    features = dict(hidden=torch.from_numpy(rng.beta(2, 8, images)).float()[:, None], state=state, usage=usage,
                    square=state.square().sum(-1), shares=p, entropy=torch.special.entr(p).sum(-1))
    found = {r.name: r for r in _image_rows(TokenLayout((4, 4), M), features, draws=DRAWS)}[row]
    return found.low <= TRUE[row] <= found.high


def study_interval(rng, seeds):
    import pandas as pd
    level = rng.normal(0.8, 0.05, seeds)
    rows = [dict(variant=v, seed=s, recall=level[s] + shift + rng.normal(0, 0.01))
            for v, shift in (('none', 0), ('memory', 0.02)) for s in range(seeds)]
    row = paired_differences(pd.DataFrame(rows), 'none', 'recall').loc['memory']
    return row.low <= 0.02 <= row.high


def true_information(draws=2_000_000, M=4):
    "Return the information of usage about the image for gamma-distributed usage, from many draws."
    p = shares(torch.from_numpy(np.random.default_rng(1).gamma(5, 1 / 5, (draws, M))))
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(-1).mean()).item()


TRUE = {'effect of masking memory': 0.2, 'variance over images': 0.3,
        'information of usage about the image': true_information()}
CASES = {'recall 0.5': (recall_interval, (1, 0.5)), 'recall 0.9, five captions': (recall_interval, (5, 0.9)),
         'recall 0.97': (recall_interval, (1, 0.97)), 'compare, loses 12 % wins 4 %': (difference_interval, (0.12, 0.04)),
         'compare, loses and wins 2 %': (difference_interval, (0.02, 0.02)),
         'ablate, loses 15 % wins 5 %': (ablation_interval, (0.15, 0.05)),
         'ablate, false alarm at 2 %': (false_alarm, (0.02,)), 'ablate, false alarm at 10 %': (false_alarm, (0.1,)),
         'ablate, false alarm, noise costs 50 points': (false_alarm, (0.02, 0.5)),
         **{f'report, {name}': (report_interval, (name,)) for name in TRUE}}


def measure(case, images, repeats, seed=0):
    "Return the share of repeats in which the interval contains the truth, or the verdict is false."
    run, args = CASES[case]
    return np.mean([run(np.random.default_rng([seed, images, i]), images, *args) for i in range(repeats)])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=300, help='simulated data sets per case')
    p.add_argument('--images', type=int, nargs='+', default=[32, 128, 512], help='images per data set')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        for images in args.images:
            share = measure(case, images, args.repeats)
            rows.append(dict(case=case, n=images, repeats=args.repeats, share=f'{share:.3f}'))
            print(f'{case:45} n {images:4}  {share:.1%}', flush=True)
    for seeds in (3, 5):
        share = np.mean([study_interval(np.random.default_rng([0, i]), seeds) for i in range(args.repeats)])
        rows.append(dict(case='study, paired by seed', n=seeds, repeats=args.repeats, share=f'{share:.3f}'))
        print(f'study, paired by seed, {seeds} seeds: {share:.1%}')
    if args.csv: store(args.csv, rows, 'cpu')
