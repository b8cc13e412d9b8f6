"""Do caption heatmaps of a pretrained CLIP point at the object that the text names?

    python benchmarks/caption_heatmaps.py --weights WEIGHTS --texts TEXTS                    # on plain grounds
    python benchmarks/caption_heatmaps.py --weights WEIGHTS --texts TEXTS --photos FOLDER    # on photos
    python benchmarks/caption_heatmaps.py --weights WEIGHTS --texts TEXTS --photos FOLDER --grid  # in grids of photos

WEIGHTS is the image tower of ViT-B/16 as open_clip stores it (safetensors), TEXTS an .npz file with text features
`coco_stuff` (C, 512) and their names `coco_names`. Each image holds drawings (OpenMoji) of two classes at known boxes,
on a plain ground or on a photo none of whose captions names them; the heatmap of each class name is scored by itself.
So a map that shows only what stands out is right in half of the cases at best. With `--grid` an image is four photos in
a grid, and two of them have captions that name a class which no caption of the other three names: its box is the
photo's quarter (the grid pointing game of Rao, Böhle and Schiele 2022, arXiv 2205.10435). There a map at random is
right in a quarter of the cases, and the center, which lies in no quarter, is no control.

Rule, written before the run: `caption_map` at its defaults is the measure. It points better than a control (center
prior, attention of CLS in the last layer, the same map of a tower with random weights) if the 95 % CI of the paired
difference of pointing accuracy, over images, excludes 0 for all of them with Holm's correction. It is faithful if the
interval of insertion minus deletion, against random order and against the attention of CLS, excludes 0. The gradient
method, which other towers get, is judged by the same rule; maps of one class against the mean of all classes are shown
beside it. Images of seeds from 10000 on were used while writing; the table is of the seeds from 0. """
import argparse
import json
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import warnings
from memory_vlm.attention import capture
from memory_vlm.data.scenes import _sprite
from memory_vlm.evaluation.intervals import holm, mean_interval
from memory_vlm.evaluation.localization import _box_masks, center_prior, energy, pointing
from memory_vlm.interp.attribution import _attribute_directions
from memory_vlm.interp.caption_maps import _gradient_maps, _insertion_deletion, _score_function
from memory_vlm.models.towers import find_tower
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from pathlib import Path
from PIL import Image
from real_clip import named_in
from results import store
from safetensors.torch import load_file
from scipy.stats import ttest_1samp

DRAWINGS = dict(zip(
    ['bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light', 'bird', 'cat', 'dog',
     'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'skis',
     'kite', 'skateboard', 'wine glass', 'knife', 'spoon', 'banana', 'apple', 'sandwich', 'orange', 'broccoli',
     'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'toilet', 'tv', 'laptop',
     'mouse', 'keyboard', 'cell phone', 'book', 'clock', 'scissors', 'teddy bear', 'toothbrush'],
    '🚲 🚗 🏍 ✈ 🚌 🚆 🚚 ⛵ 🚦 🐦 🐈 🐕 🐎 🐑 🐄 🐘 🐻 🦓 🦒 🎒 ☂ 👜 👔 🎿 🪁 🛹 🍷 🔪 🥄 🍌 🍎 🥪 🍊 '
    '🥦 🥕 🌭 🍕 🍩 🎂 🪑 🛋 🪴 🛏 🚽 📺 💻 🖱 ⌨ 📱 📖 ⏰ ✂ 🧸 🪥'.split()))
SIZE, RESULTS = 224, Path(__file__).parent/'results'/'caption_heatmaps.csv'
MEASURES = {'exact': '', 'gradient': 'gradient_'} # `caption_map`'s methods, and how their columns start
FAITHFUL = [*MEASURES, 'CLS attention, last layer'] # maps whose insertion and deletion are measured
CONTROLS = ['center prior', 'CLS attention, last layer', 'random weights']


def photo_captions(folder):
    "Return the photos of a folder, each with its captions in one text; a file captions.jsonl beside them is read."
    folder = Path(folder)
    if (table := folder/'captions.jsonl').exists():
        rows = map(json.loads, table.read_text(encoding='utf-8').splitlines())
        return [(folder/r['image'], ' '.join(r['captions']).lower()) for r in rows]
    return [(p, '') for p in sorted(folder.rglob('*.jpg'))]


def square(path, size):
    "Return the middle of a photo as a square of `size` pixels."
    photo = Image.open(path).convert('RGB')
    side = min(photo.size)
    left, top = ((n - side) // 2 for n in photo.size)
    return photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def compose_image(seed, photos):
    "Return an image with two drawings, their class names and their boxes."
    rng = np.random.default_rng(seed)
    ground, said = Image.new('RGB', (SIZE, SIZE), tuple(rng.integers(90, 200, 3).tolist())), ''
    if photos:
        path, said = photos[seed % len(photos)]
        ground = square(path, SIZE)
    names = rng.permutation([n for n in DRAWINGS if n not in said])[:2].tolist()
    while True:
        sizes = rng.integers(56, 97, 2)
        sprites = [_sprite(DRAWINGS[n], int(s)) for n, s in zip(names, sizes)]
        corners = [[int(rng.integers(0, SIZE - d + 1)) for d in s.size] for s in sprites]
        boxes = [(x, y, x + s.size[0], y + s.size[1]) for (x, y), s in zip(corners, sprites)]
        (a, b, c, d), (e, f, g, h) = boxes
        if min(c, g) <= max(a, e) or min(d, h) <= max(b, f): break # they do not overlap
    for corner, sprite in zip(corners, sprites): ground.paste(sprite, corner, sprite)
    return ground, names, boxes


def compose_grid(seed, photos, classes):
    "Return four photos in a grid, two class names that captions of one of them alone have, and the quarters of these."
    rng, half = np.random.default_rng(seed), SIZE // 2
    while True:
        four = [photos[i] for i in rng.permutation(len(photos))[:4]]
        named = [{c for c in classes if named_in([said], c)} for _, said in four]
        only = {i: sorted(own.difference(*named[:i], *named[i + 1:])) for i, own in enumerate(named)}
        asked = [i for i in only if only[i]][:2]
        if len(asked) == 2: break
    image, corners = Image.new('RGB', (SIZE, SIZE)), [(0, 0), (half, 0), (0, half), (half, half)]
    for (path, _), corner in zip(four, corners): image.paste(square(path, half), corner)
    boxes = [(x, y, x + half, y + half) for x, y in corners]
    return image, [str(rng.choice(only[i])) for i in asked], [boxes[i] for i in asked]


def vision_towers(weights):
    "Return the pretrained tower, and one with random weights."
    name = 'ViT-B-16-quickgelu'
    make = lambda: open_clip.create_model(name, pretrained_hf=False, pretrained_image=False).visual.eval()
    torch.manual_seed(0)
    random, model = make(), make()
    model.load_state_dict(load_file(weights))
    return model, random


def all_maps(model, random, x, texts, classes):
    "Return the heatmaps of two classes by each method (2, rows, columns), as `caption_map` makes them."
    plain = texts[classes]
    others = torch.stack([torch.cat([texts[:i], texts[i + 1:]]).mean(0) for i in classes])
    directions = torch.cat([plain, plain - others]) # the last two: `against` all other classes
    tower, at = find_tower(model), find_tower(model).layout
    with torch.no_grad(), capture(model, layers=-1, dtype=torch.float32) as seen:
        exact = at.to_grid(_attribute_directions(model, x[None], directions).patches.sum((1, 2)))
    untrained = at.to_grid(_attribute_directions(random, x[None], plain).patches.sum((1, 2)))
    attention, center = seen.heatmap(token='cls')[0], center_prior(at.grid)
    relevance = _gradient_maps(model, tower, x[None], _score_function(model, tower, plain, torch.eye(2)))[1]
    return {'exact': exact[:2], 'gradient': at.to_grid(relevance[:, at.patches]),
            'exact, against all classes': exact[2:], 'random weights': untrained,
            'CLS attention, last layer': torch.stack([attention] * 2), 'center prior': torch.stack([center] * 2)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--weights', required=True)
    p.add_argument('--texts', required=True)
    p.add_argument('--photos', help='folder of photos, with captions.jsonl if there is one')
    p.add_argument('--grid', action='store_true', help='four photos an image, in place of drawings on one')
    p.add_argument('--images', type=int, default=40)
    p.add_argument('--seed', type=int, default=0, help='seed of the first image')
    p.add_argument('--faithful', type=int, default=24, help='images for insertion and deletion')
    p.add_argument('--csv', default=RESULTS, help="file of results; '': none")
    args = p.parse_args()
    warnings.simplefilter('ignore')
    table = np.load(args.texts)
    texts = F.normalize(torch.from_numpy(table['coco_stuff']).float(), dim=-1)
    index = {str(n): i for i, n in enumerate(table['coco_names'])}
    photos = photo_captions(args.photos) if args.photos else None
    if args.grid and not any(said for _, said in photos or ()): p.error('--grid needs --photos with captions')
    things = list(index)[1:80] # COCO's things come first; captions call a person by other names
    controls = [c for c in CONTROLS if not (args.grid and c == 'center prior')]
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    model, random = vision_towers(args.weights)
    hits, shares, areas = {}, {}, {}
    for i in range(args.images):
        seed = args.seed + i
        image, names, boxes = compose_grid(seed, photos, things) if args.grid else compose_image(seed, photos)
        x = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
        masks, classes = _box_masks(boxes, (SIZE, SIZE)), [index[n] for n in names]
        maps = all_maps(model, random, x, texts, classes)
        if args.grid: del maps['center prior']
        for method, pair in maps.items():
            hits.setdefault(method, []).append(pointing(pair.unsqueeze(1), masks, tolerance=0).mean().item())
            shares.setdefault(method, []).append(energy(pair.unsqueeze(1).clamp_min(0), masks).mean().item())
        if i < args.faithful:
            score = lambda images: F.normalize(model(images), dim=-1) @ texts[classes[0]]
            tried = {m: maps[m][0] for m in FAITHFUL}
            tried['random order'] = torch.rand(tried['exact'].shape, generator=torch.Generator().manual_seed(i))
            found = _insertion_deletion(score, x, torch.stack(list(tried.values())), steps=4)
            for method, (insertion, deletion) in zip(tried, found.T.tolist()):
                areas.setdefault(method, []).append((insertion, deletion))
        if i % 10 == 9: print(i + 1, {m: round(float(np.mean(v)), 3) for m, v in hits.items()}, flush=True)
    hits = {m: torch.tensor(v) for m, v in hits.items()} # mean of both objects of each image
    areas = {m: torch.tensor(v) for m, v in areas.items()}
    corrected = {measure: holm({m: float(ttest_1samp(hits[measure] - hits[m], 0).pvalue) for m in controls})
                 for measure in MEASURES}
    rows = []
    for method in [*hits, 'random order']:
        row = dict(method=method)
        if method in hits:
            low, high = mean_interval(hits[method]).clamp(0, 1).tolist()
            row |= dict(images=len(hits[method]), pointing=round(float(hits[method].mean()), 4),
                        low=round(low, 4), high=round(high, 4), energy=round(float(np.mean(shares[method])), 4))
        for measure, start in MEASURES.items() if method in controls else ():
            difference = hits[measure] - hits[method]
            low, high = mean_interval(difference).clamp(-1, 1).tolist()
            row |= {f'{measure}_minus_this': round(float(difference.mean()), 4),
                    f'{start}difference_low': round(low, 4), f'{start}difference_high': round(high, 4),
                    f'{start}p_holm': f'{float(corrected[measure][method]):.2g}'}
        if method in areas:
            insertion, deletion = areas[method].mean(0).tolist()
            row |= dict(insertion=round(insertion, 4), deletion=round(deletion, 4))
            for measure, start in MEASURES.items():
                gap = areas[measure].diff(dim=1).neg() - areas[method].diff(dim=1).neg() # of insertion minus deletion
                low, high = mean_interval(gap.flatten()).tolist()
                row |= {f'{measure}_gap_minus_this': round(float(gap.mean()), 4),
                        f'{start}gap_low': round(low, 4), f'{start}gap_high': round(high, 4)}
        rows.append(row)
        print(row)
    if args.csv:
        store(args.csv, rows, ground='grid of photos' if args.grid else 'photos' if photos else 'plain', seed=args.seed,
              insertion_images=args.faithful)


if __name__ == '__main__': main()
