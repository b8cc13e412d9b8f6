"""Do caption heatmaps of memory that is read point at the object that a caption names?

    python train.py experiment=scenes_pairs model.memory.readout=maxsim training.run_dir=runs/read
    python benchmarks/caption_scenes.py runs/read --csv benchmarks/results/caption_scenes.csv

Takes runs trained on `scenes:pairs`. The captions of unseen scenes that name one object are asked for, and a heatmap is
right if its largest value lies on the visible part of this object. Beside `caption_map` at its defaults: the same with
the weights that the run started from, and the center of the image. Paired 95 % CIs are over images. The first hundred
scenes were used while writing and are left out. """
import argparse
import torch
import warnings
from memory_vlm.clip import MemoryCLIP
from memory_vlm.core import seed_everything
from memory_vlm.data.scenes import SceneSource
from memory_vlm.evaluation.intervals import mean_interval
from memory_vlm.evaluation.localization import center_prior, pointing
from memory_vlm.interp.caption_maps import caption_map
from memory_vlm.training.run_dir import open_trained
from results import store


def hits_of(models, source, i):
    "Return how many of the objects of a scene the heatmaps of each model point at, a share."
    size, hits = models['trained'].visual.patch_embed.img_size[0], {name: [] for name in (*models, 'center')}
    image = torch.from_numpy(source.pixels(i).copy()).permute(2, 0, 1)
    if source.image_size != size: raise SystemExit(f'the run takes images of {size} pixels, scenes have others')
    for name, _, mask in source.objects(i):
        caption = next(c for c in source.captions(i) if c.split(' ', 1)[1] == name) # 'a top hat', 'an apple'
        for kind, model in models.items():
            found = caption_map(model, image, caption)
            hits[kind].append((found.maps[0], mask))
        hits['center'].append((center_prior(found.maps.shape[1:]), mask))
    return {kind: torch.stack([pointing(m[None, None], torch.from_numpy(mask)[None], tolerance=0).mean()
                               for m, mask in pairs]).mean() for kind, pairs in hits.items()}, found.method


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('runs', nargs='+')
    p.add_argument('--images', type=int, default=60)
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    warnings.simplefilter('ignore')
    source = SceneSource('valid', 'pairs', cache=False)
    for run in args.runs:
        loaded = open_trained(run)
        seed_everything(loaded.cfg.training.seed)
        models = {'trained': loaded.model, 'before training': MemoryCLIP.from_config(loaded.cfg.model)}
        found = [hits_of(models, source, i) for i in range(100, 100 + args.images)]
        hits = {name: torch.stack([h[name] for h, _ in found]) for name in found[0][0]}
        rows = []
        for name, values in hits.items():
            low, high = mean_interval(values).clamp(0, 1).tolist()
            gap = mean_interval(hits['trained'] - values).tolist()
            rows.append(dict(readout=loaded.cfg.model.memory.readout, method=found[0][1], maps=name, images=args.images,
                             pointing=round(values.mean().item(), 4), low=round(low, 4), high=round(high, 4),
                             trained_minus_this=round((hits['trained'] - values).mean().item(), 4),
                             gap_low=round(gap[0], 4), gap_high=round(gap[1], 4)))
            print(rows[-1])
        if args.csv: store(args.csv, rows)


if __name__ == '__main__': main()
