"""Tuned text lenses of trained models: from which block on can a token be read in words?

    python benchmarks/text_lens.py scenes
    python benchmarks/text_lens.py clip --weights clip_b16.safetensors --images photos --names clip_b16_text.npz \\
        --student student.pt

`scenes`: the quickstart, and the same with memory tokens that captions are compared with (`late_interaction`), seed 0,
after 200 steps; the words are the names of the objects, the images the validation scenes. `clip`: CLS of OpenAI's CLIP
ViT-B/16, and with `--student` the registers that `real_clip.py distill` trained in it; the words are the 171 class
names, the images a random crop of each photo (`--crops`), lenses are fitted on crops of one half of the photos and
judged on the other. Files are those of real_clip.py.

Rule, set before the runs: a block can be read if, on images that the lens was not fitted to, it explains half of the
variance of the final output, its calibration error is at most 0.1, and its first word is that of the final output at
least 10 points more often than that of the final output of another image. Rows are appended to results/text_lens.csv.
nbs/interp/09_text_lens.ipynb and nbs/explain/a_real_clip.ipynb show them."""
import argparse
import math
import numpy as np
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.sources import open_source
from memory_vlm.interp.text_lens import text_lens
from memory_vlm.learner import make_learner
from pathlib import Path
from real_clip import MEAN, STD, halves, open_tower
from results import store
from torchvision import transforms as T

RESULTS = Path(__file__).parent/'results'/'text_lens.csv'
# That of the quickstart until December 2026
OPTIMIZER = ['training.optimizer=adamw', 'training.batch_size=64', 'training.learning_rate=1e-3',
             'training.scheduler_kwargs.warmup_epochs=0.7']
MODELS = {'quickstart': [], 'late_interaction': ['model/memory=late_interaction']}


def judged(lens, name, part, images):
    "Store the errors of a lens; return them with the verdict."
    errors = lens.errors.copy()
    words = errors['same word'] - errors['same word, other image']
    errors['readable'] = ((errors.explained >= .5) & (errors['calibration error'] <= .1) & (words >= .1)).astype(object)
    errors.loc['mean output', 'readable'] = None
    print(f'{name}, {part}, {images} images\n{errors.round(3).T.to_string()}', flush=True)
    rows = errors.round(5).rename_axis('block').reset_index().to_dict('records')
    store(RESULTS, rows, model=name, part=part, images=images, words=len(lens.words), tokens=lens.probs.shape[2])


def scenes(args):
    "Train two small models and fit a lens to the memory tokens and to CLS of each."
    for name, words in MODELS.items():
        cfg = compose([*OPTIMIZER, f'training.max_steps={args.steps}', f'training.epochs={args.steps}',
                       'training.seed=0', *words],
                      config_name='quickstart')
        learn = make_learner(cfg)
        with learn.no_logging(), learn.no_bar(): learn.fit_schedule(cfg.training.scheduler)
        print(name, {k: round(v, 3) for k, v in learn.evaluation.items() if 'R@1' in k})
        loader, names = learn.dls.valid, learn.dls.valid.source.names
        for part in ('memory', 'cls'):
            judged(text_lens(learn.model, loader, names, 512, part), name, part, min(512, len(loader.source)))


def crops(path, num):
    "Return random crops of photos (photos, num, 3, 224, 224), as the tower takes them."
    torch.manual_seed(0)
    source = open_source(path, 'train')
    transform = T.Compose([T.RandomResizedCrop(224, (.5, 1), interpolation=T.InterpolationMode.BICUBIC),
                           T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    def of(image): return torch.stack([transform(image) for _ in range(num)])
    return torch.stack([of(source.image(i).convert('RGB')) for i in range(len(source))])


def clip(args):
    "Fit a lens to CLS of a pretrained tower, and to trained registers."
    images, stored = crops(args.images, args.crops), np.load(args.names)
    first, other = halves(len(images))
    batches, num = torch.cat([images[first], images[other]]).flatten(0, 1).split(20), len(images) * args.crops
    words = dict(zip(map(str, stored['coco_names']), torch.from_numpy(stored['coco_stuff'].astype('float32'))))
    models = {('CLIP ViT-B/16', 'cls'): MemoryCLIP.from_pretrained(open_tower(args.weights))}
    if args.student:
        student = MemoryCLIP.from_pretrained(open_tower(args.weights), memory='registers')
        student.load_state_dict(torch.load(args.student))
        models['with trained registers', 'memory'] = student
    for (name, part), model in models.items():
        model.logit_scale.data.fill_(math.log(100)) # the published one
        judged(text_lens(model, batches, words, num, part), name, part, num)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('task', choices=['scenes', 'clip'])
    for name in ('weights', 'images', 'names', 'student'): p.add_argument(f'--{name}', help='of clip')
    p.add_argument('--steps', type=int, default=200, help='of scenes')
    p.add_argument('--crops', type=int, default=1, help='crops of each photo, of clip')
    args = p.parse_args()
    if args.task == 'clip' and not (args.weights and args.images and args.names):
        p.error('clip needs --weights, --images and --names')
    dict(scenes=scenes, clip=clip)[args.task](args)


if __name__ == '__main__': main()
