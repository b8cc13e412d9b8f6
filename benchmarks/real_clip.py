"""Measure outliers, test-time registers, reports and ablations on a pretrained CLIP image tower.

    python benchmarks/real_clip.py registers --weights clip_b16.safetensors --images photos --names clip_b16_text.npz
    python benchmarks/real_clip.py report --weights ...
    python benchmarks/real_clip.py ablate --weights ... --names ... --parts cls patches memory --edit registers.json
    python benchmarks/real_clip.py maps --weights ... --images free_photos --names ... --edit registers.json
    python benchmarks/real_clip.py positions --weights ... --images photos
    python benchmarks/real_clip.py cost --weights ... --images photos --num 8
    python benchmarks/real_clip.py distill --weights ... --images photos --names ... --save student.pt

`--weights`: weights of timm's `vit_base_patch16_clip_quickgelu_224` with 512 outputs (OpenAI's CLIP ViT-B/16).
`--images`: images with captions, as training takes them. `--names`: an .npz file with `coco_names` (C,) and their text
embeddings `coco_stuff` (C, 512). Zero-shot: an image counts as right if the nearest of the class names stands in one of
its captions. Results are appended to `results/real_clip_*.csv`.

Rule of `registers`, written before the run: neurons are found and sizes (5, 10, 20 and 40 neurons, 1 and 8 registers)
are tried on a random half of the images. Of the sizes that remove half of the outliers in every block that has them and
lose at most one point of zero-shot accuracy, the smallest that removes nine tenths is judged on the other half. If none
passes, the one of those that remove half which loses the least is judged, and the table says that it did not pass.

Rule of `distill` (`distill_registers`, after PH-Reg), written before the run: four registers are trained on a random
half of the images, 150 batches of 4 images, 4 views each, in bfloat16, and judged on the other half: passed if half of
the outliers are gone in every block that has at least half as many as the worst, and at most one point of zero-shot
accuracy is lost. The learning rate, 2e-5, had the smaller loss of two (1e-4) over 12 steps on the first half. The rows
`masked` have the registers masked in the trained model: they tell what the registers do from what the weights do."""
import argparse
import numpy as np
import re
import time
import timm
import torch
import torch.nn.functional as F
from contextlib import nullcontext
from memory_vlm.ablation import ablate
from memory_vlm.attention import capture
from memory_vlm.clip import MemoryCLIP
from memory_vlm.data.sources import open_source
from memory_vlm.evaluation.intervals import change_interval, mean_interval
from memory_vlm.evaluation.validation import evaluation_mode
from memory_vlm.interp.caption_maps import caption_map
from memory_vlm.interp.intervene import intervene
from memory_vlm.interp.test_time_registers import (
    RegisterEdit,
    _norms_and_outputs,
    outliers,
    patch_norms,
    sweep_registers,
)
from memory_vlm.models.towers import find_tower
from memory_vlm.report import _ReportComparison, memory_report
from memory_vlm.training.distill import _dense, _draw_views, _mean_dense, distill_registers
from pathlib import Path
from results import store
from safetensors.torch import load_file
from torchvision import transforms as T

RESULTS = Path(__file__).parent/'results'
MEAN, STD = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)


def open_tower(weights):
    "Return the tower with its projection."
    model = timm.create_model('vit_base_patch16_clip_quickgelu_224', num_classes=512)
    model.load_state_dict(load_file(weights))
    return model.eval()


def open_images(path, num=None):
    "Return images as the tower takes them (B, 3, 224, 224), and the captions of each."
    source = open_source(path, 'train')
    transform = T.Compose([T.Resize(224, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
                           T.Normalize(MEAN, STD)])
    rows = range(len(source))[:num]
    return torch.stack([transform(source.image(i).convert('RGB')) for i in rows]), [source.captions(i) for i in rows]


def named_in(captions, name):
    "Return whether a class name stands in one of the captions."
    words = name.split('-')[0] if name.endswith(('-other', '-stuff')) else name.replace('-', ' ')
    return re.search(rf'\b{re.escape(words)}(s|es)?\b', ' '.join(captions).lower()) is not None


class ZeroShot:
    "Score of features: whether the nearest class name stands in a caption of the image, 0 or 1."
    __name__ = 'zero-shot'
    def __init__(self, names_file, captions):
        stored = np.load(names_file)
        self.names = [str(n) for n in stored['coco_names']]
        self.text = F.normalize(torch.from_numpy(stored['coco_stuff'].astype('float32')), dim=-1)
        self.right = torch.tensor([[named_in(c, n) for n in self.names] for c in captions])

    def __call__(self, features, index):
        nearest = (F.normalize(features.float(), dim=-1) @ self.text.T).argmax(1)
        return self.right[index, nearest].float()


def registers(model, images, captions, score, args):
    "Sweep neurons and registers on one half, judge on the other; store the table and the outliers of each block."
    found = sweep_registers(model, images, score, nums=args.neurons, num_registers=args.registers)
    print(found, flush=True)
    store(RESULTS/'real_clip_registers.csv', found.table.round(4).to_dict('records'), images=len(images),
          passed=found.passed)
    rows = [dict(half=half, neurons=n, registers=r, block=i, outliers=round(x, 5))
            for (n, r, half), rate in found.rates.items() for i, x in enumerate(rate.tolist())]
    store(RESULTS/'real_clip_outliers.csv', rows, images=len(images))
    if args.save: found.edit.save(args.save)


def report(model, images, captions, score, args):
    "Store the rows of a memory report without and with test-time registers, their paired difference, and the time."
    reports, seconds = {}, {} # of processor time: it does not depend on what else runs
    for name in ('tower', 'with registers') if args.edit else ('tower',):
        if name != 'tower': RegisterEdit.load(args.edit).apply(model)
        start = time.process_time()
        reports[name], seconds[name] = memory_report(model, images.split(32)), time.process_time() - start
        print(reports[name], f'\n{seconds[name]:.0f} s of processor time', flush=True)
    if args.edit:
        compared, _ = _ReportComparison(reports), RegisterEdit.remove(model)
        print(compared)
    frame = (compared if args.edit else reports['tower']).frame()
    frame = frame.drop(columns=[c for c in ('layers', 'note') if c in frame])
    store(RESULTS/'real_clip_report.csv', frame.round(5).to_dict('records'), images=len(images))
    store(RESULTS/'real_clip_time.csv', [dict(what=f'memory_report, {n}', images=len(images), cpu_seconds=round(s))
                                         for n, s in seconds.items()], threads=torch.get_num_threads())


def ablations(model, images, captions, score, args):
    "Store the ablation of CLS, of the patches and of the test-time registers (memory), by zero-shot accuracy."
    for part in args.parts:
        start = time.process_time()
        if part == 'memory': RegisterEdit.load(args.edit).apply(model)
        with torch.autocast('cpu', torch.bfloat16, enabled=args.bfloat16):
            found = ablate(model, images.split(32), part=part, score=score)
        if part == 'memory': RegisterEdit.remove(model)
        print(found, f'\n{time.process_time() - start:.0f} s', flush=True)
        (name, before), = found.scores.items()
        rows = [dict(part=part, kind=kind, score=name, before=before, p=found.p_values[kind, token], **row[name])
                for (kind, token), row in found.changes.iterrows()]
        store(RESULTS/'real_clip_ablation.csv', [{k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}
                                                 for r in rows], images=len(images), verdict=found.verdict)
        spent = dict(what=f'ablate, {part}', images=len(images), cpu_seconds=round(time.process_time() - start))
        store(RESULTS/'real_clip_time.csv', [spent], threads=torch.get_num_threads())


def maps(model, images, captions, score, args):
    """Store small images, patch norms and CLS attention of the last block, without and with test-time registers, and
    for the object whose name is nearest to each image the heatmaps of this name by both methods."""
    edit, kept = RegisterEdit.load(args.edit), {}
    with torch.no_grad(): features = F.normalize(model(images), dim=-1)
    nearest = (features @ score.text[:80].T).argmax(1) # COCO's objects come first
    kept['objects'] = [score.names[i] for i in nearest]
    for method in ('exact', 'gradient'):
        found = [caption_map(model, x, score.text[i], method=method).maps[0] for x, i in zip(images, nearest)]
        kept[f'object_{method}'] = torch.stack(found).numpy().astype('float16')
    for when in ('before', 'after'):
        if when == 'after': edit.apply(model)
        with capture(model, [-1], norms=True) as found, torch.no_grad(): model(images)
        layout = found.layout
        kept[f'norms_{when}'] = layout.to_grid(found.norms[:, -1, layout.patches]).numpy().astype('float16')
        kept[f'cls_{when}'] = found.heatmap(-1, token='cls').numpy().astype('float16')
    edit.remove(model)
    pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    small = (F.interpolate(pixels, (112, 112), mode='area') * 255).round().clamp(0, 255)
    kept['pixels'] = small.byte().permute(0, 2, 3, 1).numpy()
    np.savez_compressed(RESULTS/'real_clip_maps.npz', **kept)


def positions(model, images, captions, score, args):
    """Store in how many of the images each patch of the last block is an outlier, and what the most frequent position
    would get if the outliers of each image lay anywhere: the 97.5 % quantile of 1000 permutations."""
    found = outliers(torch.cat([patch_norms(model, x)[:, -1] for x in images.split(20)]))        # bool (N,P)
    share, generator = found.double().mean(0), torch.Generator().manual_seed(0)
    largest = []
    for _ in range(1000):
        order = torch.rand(found.shape, generator=generator).argsort(1)
        largest.append(found.gather(1, order).double().mean(0).max())
    grid = find_tower(model).layout.grid
    rows = [dict(row=i // grid[1], column=i % grid[1], share=round(x, 5)) for i, x in enumerate(share.tolist())]
    store(RESULTS/'real_clip_positions.csv', rows, block=11, images=len(images),
          largest_by_chance=round(torch.stack(largest).quantile(.975).item(), 5))


def halves(num):
    "Return the indices of a random half of the images and of the other, as `sweep_registers` draws them."
    order = torch.randperm(num, generator=torch.Generator().manual_seed(0))
    return order[:(num + 1) // 2].sort().values, order[(num + 1) // 2:].sort().values


@torch.no_grad()
def patch_cosines(model, images, target):
    "Return the mean cosine of the patch features of each image to others (B, D, h, w)."
    with evaluation_mode(model): found = torch.cat([_dense(model.visual, x) for x in images.split(10)])
    return F.cosine_similarity(found, target, dim=1).mean((1, 2))


def bfloat16(): return torch.autocast('cpu', torch.bfloat16, cache_enabled=False) # a cache would keep the old weights


def distill(model, images, captions, score, args):
    "Train registers by self-distillation on one half; store outliers, features and accuracy on the other half."
    (first, other), start = halves(len(images)), time.process_time()
    with bfloat16():
        student, log = distill_registers(model, images[first].split(4), steps=args.steps, num_views=4,
                                         learning_rate=args.rate)
    print(log.groupby(log.index // 10).mean(), f'\n{time.process_time() - start:.0f} s of processor time', flush=True)
    if args.save: torch.save(student.state_dict(), args.save)
    teacher, x, settings = MemoryCLIP.from_pretrained(model), images[other], dict(images=len(images), steps=args.steps)
    found = dict(before=_norms_and_outputs(teacher, x), after=_norms_and_outputs(student, x))
    with intervene(student, 'mask'): found['masked'] = _norms_and_outputs(student, x)
    shares = {name: outliers(norms).double().mean(-1) for name, (norms, _) in found.items()} # (B,L)
    def row(what, name, values, before=None, block=None, interval=mean_interval):
        known = {} if before is None else dict(before=before.mean().item(), change=(values - before).mean().item())
        low, high = interval(values if before is None else values - before).flatten().tolist()
        return dict(what=what, model=name, block=block, value=values.mean().item(), **known, low=low, high=high)
    rows = [row('outliers', name, shares[name][:, l], shares['before'][:, l], l)
            for name in ('after', 'masked') for l in range(shares['before'].shape[1])]
    def changes(values): return change_interval(values[:, None]).clamp(-1, 1)
    right = {name: score(outputs, other).double() for name, (_, outputs) in found.items()}
    for name in ('after', 'masked'):
        rows.append(row('zero-shot accuracy', name, right[name], right['before'], interval=changes))
        cosines = F.cosine_similarity(found[name][1], found['before'][1], dim=-1)
        rows.append(row('cosine of CLS features to the teacher', name, cosines))
    views = _draw_views(4, teacher.visual.layout.grid, torch.Generator().manual_seed(1))
    with bfloat16(): target = torch.cat([_mean_dense(teacher.visual, some, views).float() for some in x.split(10)])
    near = {name: patch_cosines(m, x, target).double() for name, m in dict(before=teacher, after=student).items()}
    rows.append(row('cosine of patches to the mean over views', 'after', near['after'], near['before']))
    early, late = log.cosine[:10].mean().item(), log.cosine[-10:].mean().item() # ten steps each, other views
    rows.append(dict(what='the same in training', model='after', before=early, value=late, change=late - early))
    was, now = shares['before'].mean(0), shares['after'].mean(0)
    has = was >= was.max() / 2
    gone, change = (1 - now[has] / was[has]).min().item(), (right['after'] - right['before']).mean().item()
    passed = gone >= .5 and change >= -.01
    print(f'gone {gone:.3f}, zero-shot {change:+.3f}, passed: {passed}')
    store(RESULTS/'real_clip_distill.csv', [{k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}
                                            for r in rows], **settings, passed=passed)
    spent = dict(what='distill_registers', images=len(first), cpu_seconds=round(time.process_time() - start))
    store(RESULTS/'real_clip_time.csv', [spent], threads=torch.get_num_threads())


def cost(model, images, captions, score, args):
    "Store the processor time of `capture` relative to the forward pass: median and quartiles of rounds in turn."
    ways = {'forward': None, 'capture': {}, 'capture(norms=True)': dict(norms=True),
            'all that a report captures': dict(norms=True, states=True, values=True, patches=True)}
    spent = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, how in ways.items():
            start = time.process_time()
            with torch.inference_mode(), nullcontext() if how is None else capture(model, **how): model(images)
            spent[name].append(time.process_time() - start)
    ratios = {name: np.array(t[1:]) / spent['forward'][1:] for name, t in spent.items()} # the first round warms up
    rows = [dict(what=name, ratio=np.median(r), low=np.quantile(r, .25), high=np.quantile(r, .75),
                 seconds=np.median(spent[name][1:])) for name, r in ratios.items()]
    print(rows)
    store(RESULTS/'real_clip_cost.csv', [{k: round(float(v), 3) if k != 'what' else v for k, v in r.items()}
                                         for r in rows], images=len(images), rounds=args.rounds,
          threads=torch.get_num_threads())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=['registers', 'report', 'ablate', 'maps', 'positions', 'distill', 'cost'])
    for name in ('weights', 'images'): parser.add_argument(f'--{name}', required=True)
    parser.add_argument('--names', help='text embeddings of class names, for registers and ablate')
    parser.add_argument('--parts', nargs='+', default=['cls', 'patches'], help='of ablate')
    parser.add_argument('--bfloat16', action='store_true', help='ablate under autocast')
    parser.add_argument('--num', type=int, help='first images only')
    parser.add_argument('--neurons', type=int, nargs='+', default=[5, 10, 20, 40])
    parser.add_argument('--registers', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--save', help='file for the chosen test-time registers, or the trained model')
    parser.add_argument('--steps', type=int, default=150, help='of distill')
    parser.add_argument('--rate', type=float, default=2e-5, help='learning rate of distill')
    parser.add_argument('--rounds', type=int, default=9, help='of cost')
    parser.add_argument('--edit', help='test-time registers for a second report')
    args = parser.parse_args()
    images, captions = open_images(args.images, args.num)
    if not args.edit and (args.task == 'maps' or 'memory' in args.parts): parser.error('this needs --edit')
    if not args.names and args.task not in ('report', 'positions', 'cost'): parser.error('this needs --names')
    task = dict(registers=registers, report=report, ablate=ablations, maps=maps, positions=positions,
                distill=distill, cost=cost)[args.task]
    task(open_tower(args.weights), images, captions, args.names and ZeroShot(args.names, captions), args)


if __name__ == '__main__': main()
