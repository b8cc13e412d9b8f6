"""Can a frozen CLIP learn a second vocabulary with protected memory and keep its outputs for the first bit-identical?

    python benchmarks/protected.py
    python benchmarks/protected.py --csv benchmarks/results/protected.csv

The small CLIP of study.py learns scenes of animals and food. Both towers are then frozen, and the model has to learn
scenes of vehicles and things, whose words are in no earlier caption. The arms (`ARMS`) differ in what is trained. In
arms with *words*, the embeddings of words that occur only in the second vocabulary are trained as well. All arms get
the same steps, batches and seeds; the learning rate of each is the best one for the first seed. `change` is the largest
change of image and text embeddings of the first vocabulary. nbs/tutorials/6_protected_memory.ipynb reads the file. """
import argparse
import pandas as pd
import tempfile
import torch
from contextlib import contextmanager, nullcontext
from memory_vlm.config import compose
from memory_vlm.evaluation.validation import encode, score
from memory_vlm.learner import make_learner
from pathlib import Path
from results import store
from study import SMALL

FIRST, SECOND = 'animals+food', 'vehicles+things'
PROTECTED = ['model/memory=learnable_memory_protected', 'model.memory.num_memory_tokens=16',
             'training.freeze=all-memory']
FROZEN = {'head only': ['model/memory=off', 'training.freeze=all-visual.head.*'],
          'new CLS and head': [*PROTECTED, 'model.memory.memory_init=frozen'],
          'protected memory': PROTECTED}
WORDS = '-text.token_embedding.weight' # not frozen
ARMS = FROZEN | {f'{arm}, words': [w + WORDS * w.startswith('training.freeze') for w in words] for arm,
                 words in FROZEN.items()} \
              | {'words only': ['model/memory=off', 'training.freeze=all' + WORDS], 'everything': ['model/memory=off']}
RATES = dict.fromkeys(ARMS, (5e-3, 2e-2)) | {'everything': (2e-3,)}


def learner(vocabulary, steps, seed, *words):
    "Make a learner for one vocabulary of scenes."
    place = [f'training.data.{split}_path=scenes:easy:{vocabulary}' for split in ('train', 'val')]
    return make_learner(compose([*SMALL, 'training.scheduler_kwargs.warmup_epochs=5', *place, 'training.epochs=1000',
                                 f'training.max_steps={steps}', f'training.seed={seed}', *words],
                                config_name='quickstart'))


def words_in(learn):
    "Return the token ids of all training and validation captions of a learner."
    sources = [dl.source for dl in learn.dls]
    return {i for s in sources for k in range(len(s)) for ids in learn.model.tokenize(s.captions(k)).tolist()
            for i in ids}


def train_words(learn, old):
    ("Train only the embeddings of new words; without weight decay the others stay bit-identical. Return the number of "
     "trained values.")
    weight = learn.model.text.token_embedding.weight
    new = torch.zeros(len(weight), 1)
    new[sorted(words_in(learn) - old)] = 1
    weight.register_hook(lambda gradient: gradient * new)
    return int(new.sum()) * weight.shape[1]


def fit(learn):
    "Fit by the configuration's schedule without output, and evaluate at the end."
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule(learn.cfg.training.scheduler)
    return learn


@contextmanager
def old_head(model, first):
    "Restore the first model's projection temporarily."
    new, model.visual.head = model.visual.head, first.visual.head
    try: yield
    finally: model.visual.head = new


def row(arm, learn, trained, first, dl, before):
    "Return the results of an arm on both vocabularies."
    model, arguments = learn.model, learn.cfg.training
    keeps = (model.visual.original_outputs() if model.visual.new_cls is not None else nullcontext()
             if arm == 'everything' else old_head(model, first))
    with keeps:
        after = encode(model, dl)
        kept = score(model, *after)
    change = max((a - b).abs().max().item() for a, b in zip(after[:2], before[:2]))
    return dict(arm=arm, seed=arguments.seed, learning_rate=arguments.learning_rate,
                trained=trained, **{k: learn.evaluation[k] for k in ('i2t/R@1', 't2i/R@1')},
                first_before=score(first, *before)['i2t/R@1'], first_after=kept['i2t/R@1'], change=change)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=400, help='optimizer steps with the first vocabulary')
    p.add_argument('--second', type=int, default=600, help='optimizer steps with the second')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--csv', help='write the runs to this file')
    args = p.parse_args()
    rows, best = [], {}
    for seed in range(args.seeds):
        base = fit(learner(FIRST, args.steps, seed, 'model/memory=off'))
        dl, first = base.dls.valid, base.model
        before = encode(first, dl)
        print(f'seed {seed}: the first vocabulary is at {base.evaluation["i2t/R@1"]:.1%}', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            first.save_pretrained(folder)
            for arm, words in ARMS.items():
                for rate in [best[arm]] if arm in best else RATES[arm]:
                    learn = learner(SECOND, args.second, seed, f'model.pretrained={folder}',
                                    f'training.learning_rate={rate}', 'training.weight_decay=0', *words)
                    sizes = {n: p.numel() for n, p in learn.model.named_parameters() if p.requires_grad}
                    if 'words' in arm: sizes['text.token_embedding.weight'] = train_words(learn, words_in(base))
                    rows.append(row(arm, fit(learn), sum(sizes.values()), first, dl, before))
                    print(*rows[-1].values(), flush=True)
                best.setdefault(arm,
                                max((r for r in rows if r['arm'] == arm), key=lambda r: r['i2t/R@1']
                                    + r['t2i/R@1'])['learning_rate'])
    table = pd.DataFrame([r for r in rows if r['learning_rate'] == best[r['arm']]]).groupby('arm', sort=False)
    print(table[['trained', 'i2t/R@1', 'first_before', 'first_after', 'change']].mean().round(4))
    if args.csv:
        Path(args.csv).unlink(missing_ok=True)
        store(args.csv, rows, steps=args.steps, second=args.second)


if __name__ == '__main__': main()
