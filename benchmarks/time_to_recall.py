"""Time of training to 80 and 90 % R@1 on 512 unseen combinations of scenes, ours and plain open_clip code.

    python benchmarks/time_to_recall.py                        # quickstart and peer, three seeds, in turn
    python benchmarks/time_to_recall.py --recipes quickstart "four tokens: model.memory.num_memory_tokens=4"
    python benchmarks/time_to_recall.py --ablation             # the quickstart without each of its choices
    python benchmarks/time_to_recall.py --sweep                # the peer's sweep of rate, batch and length
    python benchmarks/time_to_recall.py --show                 # only show the table of the CSV

The peer is what a user of open_clip would write: its `CLIP` of the same sizes without memory, its `ClipLoss`, its
training transform on image files named in a CSV, its tokenizer, torch's AdamW with weight decay on matrices only, and
linear warm-up with cosine decay. Ours is `fit_schedule` of the learner with the configuration of the recipe.

A training run is timed by processor time of its training steps, loading included, evaluation excluded: with one thread
that is the time on an idle core, whatever else the machine does. All recipes of a seed run in one process and take
turns at every evaluation. Both are evaluated by `evaluate` on the same 512 images of `scenes:easy` at the same numbers
of pairs; a target is reached at the first evaluation at or above it. Rows in the CSV are not run again, so the command
can be stopped at any time."""
import argparse
import math
import open_clip
import pandas as pd
import tempfile
import threading
import time
import timm
import torch
from dataclasses import dataclass, field
from fastai.callback.core import Callback
from memory_vlm.clip import normalize_images
from memory_vlm.config import compose
from memory_vlm.core import seed_everything
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.scenes import SceneSource
from memory_vlm.evaluation.validation import evaluate
from memory_vlm.learner import make_learner
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.transform import image_transform
from open_clip_train.data import CsvDataset
from pathlib import Path
from PIL import Image
from results import store

RESULTS = Path(__file__).parent/'results'/'time_to_recall.csv'
TARGETS = 80, 90
# Words for `compose` by name of a recipe of ours, beside those of the quickstart
RECIPES = {'quickstart': []}
# The quickstart without each of its choices
ABLATION = {'AdamW at 1e-3': ['training.optimizer=adamw', 'training.learning_rate=1e-3'],
            'images of 64 pixels': ['model.image_size=64'], 'batches of 64': ['training.batch_size=64'],
            'learning rate 1e-3': ['training.learning_rate=1e-3'],
            'longer warm-up': ['training.scheduler_kwargs.warmup_epochs=0.7'], 'no memory': ['model/memory=off']}
# The peer's arguments by name
PEERS = {'peer': dict(lr=1e-3, batch=64, epochs=10, pixels=48)}
# Learning rate, batch, epochs and pixels of the sweep of the peer
SWEEP = [*((lr, batch, 7, 48) for lr in (5e-4, 1e-3, 2e-3) for batch in (64, 128)),
         (1e-3, 64, 10, 48), (1e-3, 64, 7, 64), (1e-3, 128, 5, 48), (2e-3, 128, 5, 48)]


@dataclass
class Run:
    "Evaluations of a training run, with the processor time of its training until then."
    name:str
    seed:int
    every:int                  # Pairs between two evaluations
    turns:threading.Barrier = None
    rows:list = field(default_factory=list)
    seconds:float = 0.
    pairs:int = 0

    def trained(self, pairs):
        "Count the pairs of a step. Return whether it is time for an evaluation."
        before, self.pairs = self.pairs//self.every, self.pairs + pairs
        return self.pairs//self.every > before

    def record(self, model, valid):
        result = evaluate(model, valid)
        self.rows.append((self.seconds, self.pairs, 50*(result['i2t/R@1'] + result['t2i/R@1'])))
        print(f'{self.name}, seed {self.seed}: {self.pairs:7,} pairs, {self.seconds:5.0f} s, '
              f'{self.rows[-1][2]:.1f} %', flush=True)

    def summary(self):
        "Return a row of the CSV: seconds until each target (empty: not reached) and the last R@1."
        reached = {t: next((r for r in self.rows if r[2] >= t), (math.nan, math.nan)) for t in TARGETS}
        return dict(recipe=self.name, seed=self.seed,
                    **{f'seconds_{t}': round(r[0], 1) for t, r in reached.items()},
                    **{f'pairs_{t}': r[1] for t, r in reached.items()}, seconds=round(self.seconds, 1),
                    pairs=self.pairs, last_r1=round(self.rows[-1][2], 1), every=self.every)


class Turn:
    "Of several threads one runs at a time, each until it calls `pass_on`; the clock of a run stops meanwhile."
    def __init__(self, count): self.locks, self.alive = [threading.Semaphore(0) for _ in range(count)], [True]*count
    def start(self): self.locks[0].release()
    def wait(self, k): self.locks[k].acquire()
    def pass_on(self, k, finished=False):
        self.alive[k] = not finished
        size = len(self.locks)
        following = next((j % size for j in range(k + 1, k + 1 + size) if self.alive[j % size]), None)
        if following is not None: self.locks[following].release()
        if not finished: self.wait(k)


class Watch(Callback):
    "Stop the clock of a run for evaluation and for the turns of others."
    order = 1000 # after every callback of a step
    def __init__(self, run, valid, pass_on): self.run, self.valid, self.pass_on = run, valid, pass_on
    def before_fit(self): self.start = time.process_time()
    def pause(self): self.run.seconds += time.process_time() - self.start
    def before_validate(self): self.pause()
    def after_validate(self): self.start = time.process_time()
    def after_fit(self):
        self.pause()
        self.run.record(self.learn.averaged or self.learn.model, self.valid)
    def after_batch(self):
        if not self.training or not self.run.trained(len(self.learn.xb[0])): return
        self.pause()
        self.run.record(self.learn.averaged or self.learn.model, self.valid)
        self.pass_on()
        self.start = time.process_time()


def train_ours(run, words, pass_on):
    "Fit a recipe of ours."
    cfg = compose([*words, f'training.seed={run.seed}', 'training.logging.eval_interval=1000000',
                   'training.data.train_path=scenes:easy', 'training.data.val_path=scenes:easy'],
                  config_name='quickstart')
    learn = make_learner(cfg)
    learn.dls.valid = valid = make_loader(SceneSource('valid', 'easy'), image_size=cfg.model.image_size, batch_size=256,
                                          train=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_schedule(cfg.training.scheduler, cbs=Watch(run, valid, pass_on), **cfg.training.scheduler_kwargs)


class Peer(torch.nn.Module):
    "open_clip's model, as `evaluate` calls a model: uint8 images, captions of any padding."
    def __init__(self, sizes, width):
        super().__init__()
        self.clip, self.length = CLIP(embed_dim=width, **sizes), sizes['text_cfg']['context_length']
        self.mean, self.std = map(torch.tensor, (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
        self.logit_scale = self.clip.logit_scale
    def encode_image(self, images): return self.clip.encode_image(normalize_images(images, self.mean, self.std))
    def encode_text(self, ids): return self.clip.encode_text(
        torch.nn.functional.pad(ids, (0, self.length - ids.shape[1])))


def train_peer(run, options, pass_on, folder):
    "Train open_clip's model by a loop of its own."
    m, o = compose([], config_name='quickstart').model, dict(betas=(.9, .98), decay=.1, warmup=.1,
                                                              optimizer='adamw') | options
    sizes = dict(vision_cfg=dict(layers=m.depth, width=m.embed_dim, head_width=m.embed_dim//m.num_heads,
                                 patch_size=m.patch_size, image_size=o['pixels']),
                 text_cfg=dict(context_length=m.text.max_len, vocab_size=49408, width=m.text.embed_dim,
                               heads=m.text.num_heads, layers=m.text.depth))
    seed_everything(run.seed)
    model, loss = Peer(sizes, m.embed_dim), ClipLoss()
    tokenizer, transform = open_clip.SimpleTokenizer(context_length=m.text.max_len), image_transform(o['pixels'], True)
    data = CsvDataset(str(folder/'train.csv'), transform, 'filepath', 'title', '\t', tokenizer)
    loader = torch.utils.data.DataLoader(data, o['batch'], shuffle=True, drop_last=True)
    valid = make_loader(SceneSource('valid', 'easy'), image_size=o['pixels'], batch_size=256, train=False)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    if o['optimizer'] == 'adamw':
        opt = torch.optim.AdamW([dict(params=matrices, weight_decay=o['decay']), dict(params=rest, weight_decay=0.)],
                                lr=o['lr'], betas=o['betas'], eps=1e-6)
    else: # Muon for the weights of blocks, AdamW for the rest
        hidden = [p for n, p in model.named_parameters() if p.ndim > 1 and '.resblocks.' in n]
        others = [p for p in matrices if all(p is not h for h in hidden)]
        groups = (hidden, o['decay'], False), (others, o['decay'], True), (rest, 0., True)
        opt = timm.optim.create_optimizer_v2([dict(params=ps, weight_decay=d, use_fallback=f) for ps, d, f in groups],
                                             o['optimizer'], lr=o['lr'], betas=o['betas'])
    total = o['epochs']*len(SceneSource('train', 'easy'))//o['batch'] # an epoch: every image once
    rise, done, start = int(o['warmup']*total), 0, time.process_time()
    while done < total:
        for images, ids in loader:
            rate = (done + 1)/rise if done < rise else .5*(1 + math.cos(math.pi*(done - rise)/(total - rise)))
            for group in opt.param_groups: group['lr'] = o['lr']*rate
            loss(*model.clip(images, ids)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            opt.step()
            opt.zero_grad()
            with torch.no_grad(): model.clip.logit_scale.clamp_(0, math.log(100))
            done += 1
            if run.trained(len(images)) or done == total:
                run.seconds += time.process_time() - start
                run.record(model, valid)
                if done == total: return
                pass_on()
                start = time.process_time()


def write_files(folder):
    "Write the training images and a CSV of all their captions, as open_clip reads them."
    source, lines = SceneSource('train', 'easy'), ['filepath\ttitle']
    for i in range(len(source)):
        Image.fromarray(source.pixels(i)).save(path := folder/f'{i:04}.png', compress_level=1)
        lines += [f'{path}\t{caption}' for caption in source.captions(i)]
    (folder/'train.csv').write_text('\n'.join(lines), encoding='utf-8')


def train(names, seed, every, csv):
    "Train recipes in turn, and store the result of each."
    turn, failed = Turn(len(names)), []
    with tempfile.TemporaryDirectory() as folder:
        if any(name in PEERS for name in names): write_files(Path(folder))
        def work(k, name):
            turn.wait(k)
            try:
                run = Run(name, seed, every)
                pass_on = lambda: turn.pass_on(k)
                if name in PEERS: train_peer(run, PEERS[name], pass_on, Path(folder))
                else: train_ours(run, RECIPES[name], pass_on)
                store(csv, [run.summary()], threads=torch.get_num_threads(),
                      settings=' '.join(RECIPES.get(name) or map(str, PEERS.get(name, {}).items())))
            except BaseException as e: failed.append(e)
            turn.pass_on(k, finished=True)
        threads = [threading.Thread(target=work, args=x) for x in enumerate(names)]
        for t in threads: t.start()
        turn.start()
        for t in threads: t.join()
    if failed: raise failed[0]


def table(rows):
    "Return a row per recipe: mean over seeds of the time until each target, and how many seeds reached it."
    groups = rows.groupby('recipe', sort=False)
    def reached(seconds):
        found = seconds.dropna()
        return f'{found.mean():.0f} s ({len(found)} of {len(seconds)})' if len(found) else 'not reached'
    columns = {f'{t} %': [reached(g[f'seconds_{t}']) for _, g in groups] for t in TARGETS}
    return pd.DataFrame(dict(recipe=[name for name, _ in groups], **columns,
                             last=[f'{g.last_r1.mean():.1f} % after {g.seconds.mean():.0f} s' for _, g in groups]))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--recipes', nargs='+', default=['quickstart', 'peer'],
                   help="names, or 'NAME: WORDS' with words of train.py, or 'peer NAME: lr=1e-3 batch=64 epochs=10 "
                        "pixels=48', also with optimizer=nmuon")
    p.add_argument('--ablation', action='store_true', help='leave out each choice of the quickstart')
    p.add_argument('--sweep', action='store_true', help="run the peer's sweep")
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--every', type=int, default=1408, help='pairs between two evaluations (count)')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--csv', default='runs/time_to_recall.csv', help='file with the rows; each run appends one')
    p.add_argument('--show', action='store_true', help=f'only show the table of {RESULTS.name}')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.ablation:
        RECIPES.update(ABLATION)
        args.recipes = list(RECIPES)
    if args.sweep:
        args.recipes = [f'peer {lr} {batch} {epochs} {pixels}: lr={lr} batch={batch} epochs={epochs} pixels={pixels}'
                        for lr, batch, epochs, pixels in SWEEP]
    names = [r.partition(': ')[0] for r in args.recipes]
    for name, _, words in (r.partition(': ') for r in args.recipes):
        if name.startswith('peer') and words:
            PEERS[name] = {k: dict(lr=float, optimizer=str).get(k, int)(v) for k, v in
                           (w.split('=') for w in words.split())}
        elif words: RECIPES[name] = words.split()
    path = RESULTS if args.show else Path(args.csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds if not args.show else ():
        done = set(pd.read_csv(path)[['recipe', 'seed']].itertuples(index=False, name=None)) if path.exists() else set()
        left = [n for n in names if (n, seed) not in done]
        if left: train(left, seed, args.every, path)
    print(table(pd.read_csv(path)).to_string(index=False))


if __name__ == '__main__': main()
