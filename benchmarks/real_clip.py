"""Measure outliers, test-time registers, reports and ablations on a pretrained CLIP image tower.

    python benchmarks/real_clip.py registers --weights clip_b16.safetensors --images photos --names clip_b16_text.npz
    python benchmarks/real_clip.py report --weights ...
    python benchmarks/real_clip.py ablate --weights ... --names ... --parts cls patches memory --edit registers.json
    python benchmarks/real_clip.py maps --weights ... --images free_photos --edit registers.json

`--weights`: weights of timm's `vit_base_patch16_clip_quickgelu_224` with 512 outputs (OpenAI's CLIP ViT-B/16).
`--images`: images with captions, as training takes them. `--names`: an .npz file with `coco_names` (C,) and their text
embeddings `coco_stuff` (C, 512). Zero-shot: an image counts as right if the nearest of the class names stands in one of
its captions. Results are appended to `results/real_clip_*.csv`.

Rule of `registers`, written before the run: neurons are found and sizes (5, 10, 20 and 40 neurons, 1 and 8 registers)
are tried on a random half of the images. Of the sizes that remove half of the outliers in every block that has them and
lose at most one point of zero-shot accuracy, the smallest that removes nine tenths is judged on the other half. If none
passes, the one of those that remove half which loses the least is judged, and the table says that it did not pass."""
import argparse
import numpy as np
import re
import time
import timm
import torch
import torch.nn.functional as F
from memory_vlm.ablation import ablate
from memory_vlm.attention import capture
from memory_vlm.data.sources import open_source
from memory_vlm.interp.test_time_registers import RegisterEdit, sweep_registers
from memory_vlm.report import _ReportComparison, memory_report
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
    rows = [dict(half=half, neurons=n, registers=r, block=i + 1, outliers=round(x, 5))
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
    "Store small images, patch norms and CLS attention of the last block, without and with test-time registers."
    edit, kept = RegisterEdit.load(args.edit), {}
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=['registers', 'report', 'ablate', 'maps'])
    for name in ('weights', 'images'): parser.add_argument(f'--{name}', required=True)
    parser.add_argument('--names', help='text embeddings of class names, for registers and ablate')
    parser.add_argument('--parts', nargs='+', default=['cls', 'patches'], help='of ablate')
    parser.add_argument('--bfloat16', action='store_true', help='ablate under autocast')
    parser.add_argument('--num', type=int, help='first images only')
    parser.add_argument('--neurons', type=int, nargs='+', default=[5, 10, 20, 40])
    parser.add_argument('--registers', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--save', help='file for the chosen test-time registers')
    parser.add_argument('--edit', help='test-time registers for a second report')
    args = parser.parse_args()
    images, captions = open_images(args.images, args.num)
    if not args.edit and (args.task == 'maps' or 'memory' in args.parts): parser.error('this needs --edit')
    task = dict(registers=registers, report=report, ablate=ablations, maps=maps)[args.task]
    task(open_tower(args.weights), images, captions, args.names and ZeroShot(args.names, captions), args)


if __name__ == '__main__': main()
