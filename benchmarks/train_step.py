"""Time of our training step compared with open_clip's, at the default architecture.

    python benchmarks/train_step.py                     # batch 16 on the CPU, or batch 256 on CUDA if there is one
    python benchmarks/train_step.py --profile           # also say where the time of each goes
    python benchmarks/train_step.py --csv benchmarks/results/train_step.csv
    python benchmarks/train_step.py --readout           # 8 tokens that are read by MaxSim, beside 8 that are not read

The peer is open_clip's `CLIP` of the same sizes with its `ClipLoss` and torch's AdamW, fed as open_clip feeds it:
normalized float images and captions padded to 77 tokens. Ours is fed as our loader feeds it: uint8 images and captions
of the same words trimmed to the longest of the batch. A step is forward, loss, backward, clipping to norm 1, optimizer,
and setting gradients to None. Both are interleaved in one process; the ratio is the median over rounds of the ratios
within a round. A large matrix product is interleaved too: the throughput of a step relative to it shows how much of the
step is necessary arithmetic. """
import argparse
import open_clip
import random
import statistics
import time
import torch
from memory_vlm.clip import MemoryCLIP, normalize_images
from memory_vlm.config import compose
from memory_vlm.data.tokenizer import tokenize, trim
from memory_vlm.evaluation.validation import PRECISIONS
from memory_vlm.learner import make_loss
from memory_vlm.training.optim import make_optimizer
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from results import store
from torch.utils.flop_counter import FlopCounterMode

WORDS = ('a the small old red green dog cat boat house tree man woman child runs sits stands on under near with and '
         'two three').split()


def captions(n):
    "Captions of 8 to 16 words, 12 on average."
    rng = random.Random(0)
    return [' '.join(rng.choices(WORDS, k=rng.randint(8, 16))) for _ in range(n)]


def pairs(args):
    "Return seeded random uint8 images and padded captions."
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8, device=args.device)
    return images, tokenize(captions(args.batch)).to(args.device)


def peer_step(args, images, ids):
    "Return open_clip's model and a function that takes one step with its loss and optimizer."
    sizes = dict(vision_cfg=dict(layers=12, width=512, head_width=64, patch_size=16, image_size=224),
                 text_cfg=dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12))
    model, loss = CLIP(embed_dim=512, **sizes).to(args.device), ClipLoss()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW([dict(params=decay, weight_decay=0.01), dict(params=rest, weight_decay=0.)], lr=1e-5)
    mean, std = (torch.tensor(t, device=args.device)
                 for t in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    floats = normalize_images(images, mean, std) # normalized by its loader
    return model, lambda: step(args, model, opt, lambda: loss(*model(floats, ids)))


def our_step(args, images, ids, *overrides):
    "Return our model and a function that takes one step with our loss and optimizer."
    cfg = compose(['training.learning_rate=1e-5', *overrides])
    model, loss = MemoryCLIP.from_config(cfg.model).to(args.device), make_loss(cfg.model.contrastive)
    opt = make_optimizer(model, cfg.training)
    short = trim(ids)
    return model, lambda: step(args, model, opt, lambda: loss(model(images, short), None))


def step(args, model, opt, loss):
    dtype = PRECISIONS[args.precision]
    with torch.autocast(args.device, dtype, enabled=dtype is not None): value = loss()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    opt.step()
    opt.zero_grad()


def seconds(args, f):
    start = time.perf_counter()
    f()
    if args.device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(f):
    "Return the floating-point operations of a step including its backward pass."
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()


def product(args):
    "Return a large matrix product and its floating-point operations."
    side, dtype = 8192 if args.device == 'cuda' else 2048, PRECISIONS[args.precision] or torch.float32
    a, b = (torch.randn(side, side, device=args.device).to(dtype) for _ in range(2))
    return lambda: [a @ b for _ in range(4)], 4 * 2 * side ** 3


def profile(f):
    "Return the operators that take most of a step, summed over shapes."
    with torch.profiler.profile() as p: f()
    return p.key_averages().table(sort_by='self_cpu_time_total', row_limit=12, max_name_column_width=45)


def main():
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda' if cuda else 'cpu')
    p.add_argument('--batch', type=int, help='pairs; 16 on the CPU, 256 on CUDA')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--readout', action='store_true', help='memory that is read beside memory that is not')
    p.add_argument('--profile', action='store_true')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    args.batch = args.batch or (256 if args.device == 'cuda' else 16)
    images, ids = pairs(args)
    eight = ['model.memory.num_memory_tokens=8', 'model.memory.mem_reinit_steps=0']
    ours = {'8 tokens': eight, '8 tokens, read': [*eight, 'model.memory.readout=maxsim']} if args.readout else {
        'no memory': ['model/memory=off'], '64 tokens': []}
    steps = {'open_clip': peer_step(args, images, ids)}
    steps |= {f'ours, {name}': our_step(args, images, ids, *words) for name, words in ours.items()}
    multiply, multiplied = product(args)
    counts, rounds, rows = {name: operations(f) for name, (_, f) in steps.items()}, [], []
    for i in range(args.rounds + 1):
        rounds.append({name: seconds(args, f) for name, (_, f) in steps.items()} | {'product': seconds(args, multiply)})
    rounds = rounds[1:] # the first warms up
    for name in steps:
        ratio = statistics.median(r['open_clip'] / r[name] for r in rounds)
        share = statistics.median(counts[name] / r[name] / (multiplied / r['product']) for r in rounds)
        rows.append(dict(step=name, seconds=round(statistics.median(r[name] for r in rounds), 4),
                         speed_vs_open_clip=round(ratio, 3),
                         tera_operations=round(counts[name] / 1e12, 3), share_of_product=round(share, 3)))
        print(f'{name:20} {rows[-1]["seconds"]:8.3f} s   {ratio:.2f} x the speed of open_clip   {share:.0%} of the '
              f'speed of a matrix product')
    if args.readout:
        first, last = (f'ours, {name}' for name in ours)
        print(f'read / not read: time {statistics.median(r[last] / r[first] for r in rounds):.3f}, '
              f'operations {counts[last] / counts[first]:.3f}')
    if args.profile:
        for name, (_, f) in steps.items(): print(f'\n{name}\n{profile(f)}')
    if args.csv: store(args.csv, rows, device=args.device, batch=args.batch, precision=args.precision)


if __name__ == '__main__': main()
