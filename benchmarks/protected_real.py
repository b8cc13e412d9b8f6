"""Does learnable memory teach a frozen pretrained CLIP tower more than a new head, on labeled images new to it?

    python benchmarks/protected_real.py --weights WEIGHTS --data FOLDER --csv benchmarks/results/protected_real.csv

WEIGHTS: weights of timm's `vit_base_patch16_clip_quickgelu_224` (OpenAI's CLIP ViT-B/16). FOLDER: Fashion-MNIST as its
four gzipped files. The tower is frozen; a linear classifier of 10 classes (the head, zero at the start) is trained with

    head only           the published CLS
    new CLS             a second CLS, which sees the old tokens and itself; the old ones do not see it
    protected memory    the second CLS also sees 16 learned tokens in each of the 12 blocks (`kv_protected`)
    kv memory, last block   no second CLS; the published one sees 16 learned tokens in the last block (`kv`)

Rule, written before the run. A run has 200 training images, 20 of each class, drawn by its seed from the training file;
300 test images, 30 of each class, are the same for all. 100 steps of AdamW without weight decay, batches of 20 without
augmentation, one cycle of the learning rate, bfloat16 autocast. Rates are chosen by accuracy (ties: cross-entropy) on
200 images of the training file after training on 200 others; no reported run sees either. The head's rate is chosen for
`head only`; the other arms keep it for their head and choose a rate of their own for what they add. `head only, 1000
steps`, with a choice of its own, tells whether the head was only short of steps. Three seeds. An arm is better than
another if the 95 % CI of the paired difference in accuracy, over test images after the mean over seeds, excludes 0 with
Holm's correction over the five comparisons in COMPARED. The interval over seeds is in the tutorial that reads the file.

Changed before any test image was seen: the head's rates go up to 0.1, because a first choice was at the edge, 0.01; kv
memory is in the last block instead of the last 4, and there are 300 test images instead of 1000, because processor time
was short.

What is frozen and does not depend on memory is computed once: the features of CLS, the keys and values of the old
tokens in each block, and the input of the last block. Before the first fit, each cached path is compared with the
whole model. Choices are kept in a file beside the results, and a second call does not repeat them.
nbs/tutorials/6_protected_memory.ipynb reads the results."""
import argparse
import gzip
import numpy as np
import pandas as pd
import time
import timm
import torch
import torch.nn.functional as F
from functools import partial
from memory_vlm.evaluation.intervals import holm, mean_interval
from memory_vlm.vision import ACTIVATIONS, MemoryViT, _append_memory
from pathlib import Path
from real_clip import MEAN, STD
from results import store
from safetensors.torch import load_file
from scipy.stats import ttest_1samp
from torch import nn

M, LATE, BATCH, STEPS, CLASSES, SEEDS = 16, 11, 20, 100, 10, 3
HEAD_RATES, RATES = (1e-3, 3e-3, 1e-2, 3e-2, .1), (1e-3, 3e-3, 1e-2)
USES = {'kv memory, last block': 1, 'new CLS': 2, 'protected memory': 2} # part of what `cache` returns; else 0
POSITIONS = {'new CLS': 'kv_protected', 'protected memory': 'kv_protected', 'kv memory, last block': 'kv'}
COMPARED = [*((arm, 'head only') for arm in POSITIONS), ('protected memory', 'new CLS'),
            ('kv memory, last block', 'protected memory')]


class Images:
    "A split of Fashion-MNIST, as the tower takes images."
    def __init__(self, folder, split):
        def read(kind, skip):
            return np.frombuffer(gzip.open(next(Path(folder).rglob(f'{split}-{kind}*.gz'))).read(), np.uint8)[skip:]
        self.labels = torch.from_numpy(read('labels', 8).astype('int64'))
        self.pixels = read('images', 16).reshape(-1, 28, 28)

    def draw(self, per_class, seed, without=()):
        "Return indices of images, as many of each class."
        order = np.random.default_rng(seed).permutation(len(self.labels))
        order = torch.from_numpy(order[~np.isin(order, without)])
        return torch.cat([order[self.labels[order] == c][:per_class] for c in range(CLASSES)])

    def __getitem__(self, index):
        x = torch.from_numpy(self.pixels[index.numpy()]).float().div(255)[:, None].expand(-1, 3, -1, -1)
        x = F.interpolate(x, (224, 224), mode='bicubic', align_corners=False).clamp(0, 1)
        return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def open_tower(weights, position=None):
    "Return the frozen tower, with memory if a position is given."
    vit = MemoryViT(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, num_classes=0, pre_norm=True,
                    norm_layer=partial(nn.LayerNorm, eps=1e-5), act_layer=ACTIVATIONS['quick_gelu'])
    vit.load_state_dict({k: v for k, v in load_file(weights).items() if not k.startswith('head.')})
    if position: vit.add_memory(M, 'learnable', 'attention', position, .5)
    if position == 'kv':
        for block in vit.blocks[:LATE]: block.memory = None
    return vit.eval().requires_grad_(False)


def autocast(enabled=True): return torch.autocast('cpu', torch.bfloat16, enabled=enabled)


@torch.no_grad()
def cache(vit, images, half=True):
    "Return features (B, D), the input of the late blocks (B, N, D), and keys and values (B, L, 2, H, N, d)."
    with autocast(half):
        x = vit.norm_pre(MemoryViT._pos_embed(vit, vit.patch_embed(images)))
        keys = []
        for i, block in enumerate(vit.blocks):
            if i == LATE: late = x
            h = block.norm1(x)
            q, k, v = block.attn.project(h)
            keys.append(torch.stack([k, v], 1))
            x = block.feed_forward(x + block.attn.read(h, q, k, v))
        return vit.norm(x)[:, 0].float(), late, torch.stack(keys, 1)


def read_new_cls(vit, keys, with_memory):
    "Return the features of the second CLS (B, D), as `MemoryBlock.forward_protected` computes them."
    x = vit.norm_pre(vit.new_cls).expand(len(keys), -1, -1)
    for i, block in enumerate(vit.blocks):
        h = block.norm1(x)
        q, k, v = block.attn.project(h)
        if with_memory: k, v = (_append_memory(*pair) for pair in zip((k, v), block.memory_keys()))
        old = keys[:, i]                                                          # (B,2,H,N,d), not copied
        logits = torch.cat([q @ old[:, 0].mT, q @ k.mT], -1).float() * q.shape[-1] ** -.5
        weights = logits.softmax(-1).to(v.dtype)
        y = weights[..., :old.shape[3]] @ old[:, 1] + weights[..., old.shape[3]:] @ v # (B,H,1,d)
        x = block.feed_forward(x + block.attn.proj(y.transpose(1, 2).flatten(2)))
    return vit.norm(x)[:, 0].float()


def read_late(vit, x):
    "Return the features of CLS (B, D) after the last blocks, whose memory all tokens see."
    last = vit.blocks[-1]
    last.query_slice = slice(0, 1) # nothing reads the other outputs of the last block
    for block in vit.blocks[LATE:]: x = block(x)
    last.query_slice = None
    return vit.norm(x)[:, 0].float()


class Arm(nn.Module):
    "A head, and what an arm adds to the tower. Takes the part of what `cache` returns that `uses` names."
    def __init__(self, arm, weights, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.arm, self.uses, self.head = arm, USES.get(arm, 0), nn.Linear(768, CLASSES)
        for p in self.head.parameters(): nn.init.zeros_(p)
        self.vit = open_tower(weights, POSITIONS[arm]) if arm in POSITIONS else None
        for m in self.vit.blocks.modules() if self.vit else ():
            if isinstance(m, nn.Linear): m.to(torch.bfloat16) # as autocast would convert them at every step
        names = {'new CLS': ('new_cls',), 'protected memory': ('new_cls', 'memory.tokens')}.get(arm, ('memory.tokens',))
        parameters = self.vit.named_parameters() if self.vit else ()
        self.added = [p.requires_grad_() for n, p in parameters if n.endswith(names)]

    def forward(self, x):
        if self.uses == 1: x = read_late(self.vit, x)
        elif self.uses: x = read_new_cls(self.vit, x, self.arm == 'protected memory')
        return self.head(x)


def fit(model, cached, labels, head_rate, rate, seed, steps=STEPS):
    "Train an arm."
    generator = torch.Generator().manual_seed(seed)
    groups = [dict(params=list(model.head.parameters()), lr=head_rate)]
    if model.added: groups.append(dict(params=model.added, lr=rate))
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g['lr'] for g in groups], total_steps=steps)
    epochs = -(-steps * BATCH // len(labels))
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(epochs)])
    for batch in order.split(BATCH)[:steps]:
        with autocast(): logits = model(cached[model.uses][batch])
        F.cross_entropy(logits.float(), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@torch.no_grad()
def predict(models, tower, images, index):
    "Return logits of several models on the same images, which pass the tower once."
    found = []
    for batch in index.split(50):
        cached = cache(tower, images[batch])
        with autocast(): found.append([model(cached[model.uses]).float() for model in models])
    return [torch.cat(x) for x in zip(*found)]


@torch.no_grad()
def check(weights, tower, images):
    "Raise unless each cached path gives what the whole model gives; return the largest difference in a feature."
    published = timm.create_model('vit_base_patch16_clip_quickgelu_224', num_classes=512)
    published.load_state_dict(load_file(weights))
    published.reset_classifier(0)
    (features, late, keys), found = cache(tower, images, half=False), {}
    found['head only'] = features, published.eval()(images)
    for arm, kind in USES.items():
        if arm == 'new CLS': continue # the same path without memory
        vit = open_tower(weights, POSITIONS[arm])
        found[arm] = read_late(vit, late) if kind == 1 else read_new_cls(vit, keys, True), vit(images)
    differences = {arm: (a - b.float()).abs().max().item() for arm, (a, b) in found.items()}
    assert max(differences.values()) < 1e-3 * features.std(), differences # sums in another order
    return differences


@torch.no_grad()
def original_change(model, tower, images):
    "Return the largest change of the original output of the tower."
    with model.vit.original_outputs(), autocast(): return (model.vit(images) - tower(images)).abs().max().item()


def choose(path, name, rates, train, labels, valid, valid_labels, weights, head_rate=None, steps=STEPS):
    "Return the rate with the best accuracy on the split of its own. Choices in the file are not repeated."
    known = pd.read_csv(path) if path and path.exists() else pd.DataFrame(columns=['arm', 'rate'])
    rows, arm = known[known.arm == name].to_dict('records'), name.partition(', 1000')[0]
    for rate in [r for r in rates if r not in [row['rate'] for row in rows]]:
        start = time.process_time()
        model = fit(Arm(arm, weights, 100), train, labels, head_rate or rate, rate, 100, steps).eval()
        with torch.no_grad(), autocast():
            logits = torch.cat([model(x) for x in valid[model.uses].split(50)]).float()
        accuracy = (logits.argmax(1) == valid_labels).double().mean().item()
        rows.append(dict(arm=name, rate=rate, accuracy=accuracy, loss=F.cross_entropy(logits, valid_labels).item()))
        if path: store(path, rows[-1:])
        print('choice', *rows[-1].values(), f'{time.process_time() - start:.0f} s', flush=True)
    return max(rows, key=lambda r: (r['accuracy'], -r['loss']))['rate']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('weights', 'data'): parser.add_argument(f'--{name}', required=True)
    parser.add_argument('--csv', help='write the runs to this file, and the differences beside it')
    parser.add_argument('--per-class', type=int, default=20, help='training images')
    parser.add_argument('--test', type=int, default=30, help='test images of each class')
    args = parser.parse_args()
    began, train, test = time.process_time(), Images(args.data, 'train'), Images(args.data, 't10k')
    tower, held_out = open_tower(args.weights), test.draw(args.test, 0)
    print('cached paths and whole models differ by', check(args.weights, tower, test[held_out[:2]]), flush=True)
    def read(index):
        parts = zip(*(cache(tower, train[b]) for b in index.split(20)))
        return [torch.cat(x) for x in parts], train.labels[index]
    valid = train.draw(args.per_class, 100)
    draws = {100: train.draw(args.per_class, 101, valid)}
    kept_out = torch.cat([valid, draws[100]])
    draws |= {seed: train.draw(args.per_class, seed, kept_out) for seed in range(SEEDS)}
    chosen, both, csv = {}, (*read(draws[100]), *read(valid)), args.csv and Path(args.csv)
    choices = csv and csv.with_stem(f'{csv.stem}_choices')
    for arm, steps in (('head only', STEPS), ('head only, 1000 steps', 1000)):
        chosen[arm] = choose(choices, arm, HEAD_RATES, *both, args.weights, steps=steps)
    for arm in POSITIONS: chosen[arm] = choose(choices, arm, RATES, *both, args.weights, chosen['head only'])
    del both
    models, rows = {}, []
    for seed in range(SEEDS):
        cached, labels = read(draws[seed])
        for arm, rate in chosen.items():
            start, steps = time.process_time(), 1000 if '1000' in arm else STEPS
            model = Arm(arm.partition(', 1000')[0], args.weights, seed)
            head_rate = rate if arm.startswith('head') else chosen['head only']
            models[arm, seed] = fit(model, cached, labels, head_rate, rate, seed, steps).eval()
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            change = original_change(model, tower, test[held_out[:4]]) if POSITIONS.get(arm) == 'kv_protected' else ''
            rows.append(dict(arm=arm, seed=seed, steps=steps, head_rate=head_rate, rate=rate if model.vit else '',
                             trained=trained, change=change, fit_seconds=round(time.process_time() - start)))
            print(*rows[-1].values(), flush=True)
        del cached
    logits, right = predict(list(models.values()), tower, test, held_out), {}
    for row, x in zip(rows, logits):
        hits = (x.argmax(1) == test.labels[held_out]).double()
        right.setdefault(row['arm'], []).append(hits)
        row.update(accuracy=hits.mean().item(), loss=round(F.cross_entropy(x, test.labels[held_out]).item(), 4))
        print(row['arm'], row['seed'], row['accuracy'], flush=True)
    paired = {pair: torch.stack(right[pair[0]]).mean(0) - torch.stack(right[pair[1]]).mean(0) for pair in COMPARED}
    p = holm({pair: ttest_1samp(d.numpy(), 0).pvalue for pair, d in paired.items()})
    differences = []
    for (arm, base), d in paired.items():
        low, high = mean_interval(d)
        differences.append(dict(arm=arm, base=base, difference=round(d.mean().item(), 4), low=round(float(low), 4),
                                high=round(float(high), 4), p=round(p[arm, base], 4)))
        print(*differences[-1].values(), flush=True)
    print(f'{time.process_time() - began:.0f} s of processor time')
    if csv:
        settings = dict(train_images=CLASSES * args.per_class, test_images=len(held_out))
        for path, table in ((csv, rows), (csv.with_stem(f'{csv.stem}_differences'), differences)):
            path.unlink(missing_ok=True)
            store(path, table, **settings)


if __name__ == '__main__': main()
