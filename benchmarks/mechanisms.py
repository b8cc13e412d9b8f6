"""Cost of each memory preset, and of an output gate on attention: parameters, arithmetic, time of a step, memory.

    python benchmarks/mechanisms.py                 # the default architecture, batch 4 on the CPU or 256 on CUDA
    python benchmarks/mechanisms.py --tokens 64     # all with as many tokens, instead of what their papers use
    python benchmarks/mechanisms.py --csv benchmarks/results/mechanisms.csv

- Parameters and FLOPs are counted (`model_cost`): FLOPs of a forward pass of one pair, captions of 16 tokens.
- Time: the step of train_step.py. Each preset is interleaved with no memory in one process; the ratio is the median
  over rounds of the ratios within a round, with its minimum and maximum, divided by the ratio of FLOPs. Goals for 64
  tokens, checked below the table: `default` at most 1.05, and a step of `learnable_memory` (kv) at most 1.15.
- In training, the last block of a model with memory computes only the inputs of CLS, unless the mechanism has weights
  in that block; the ViT without memory computes all of it. So ratios of a step can lie below 1, in FLOPs as in time.
  `forward` is the ratio for features (no gradient), where every model computes everything.
- Memory: on CUDA the allocator's peak in a step; on a CPU what `model_cost` counts for weights, gradients, Adam and
  activations, since a process that has trained one model cannot tell what the next one needs.
"""
import argparse
import statistics
import torch
from memory_vlm.config import compose, config_dir
from memory_vlm.core import UserError
from memory_vlm.models.cost import model_cost
from results import store
from train_step import our_step, pairs, seconds

GATE = 'model.vit_kwargs.attn_gate=elementwise' # arXiv 2505.06708; with registers as in experiment=gated_registers
VARIANTS = {'output gate, no memory': ['model/memory=off', GATE],
            'output gate, registers': ['model/memory=registers', GATE]}
GOALS = dict(default=('step_over_flops', 1.05), learnable_memory=('step_ratio', 1.15)) # of 64 tokens, at most


def presets():
    "Return the names of all presets with memory; `default` is `attention` with 64 tokens."
    return sorted(p.stem for p in (config_dir()/'model'/'memory').glob('*.yaml') if p.stem != 'off')


def features(model, images, ids):
    "Return a function that encodes a batch as evaluation does."
    @torch.no_grad()
    def run():
        model.eval()
        model(images, ids)
        model.train()
    return run


def peak(f):
    "Return the peak CUDA memory of a step (bytes)."
    torch.cuda.reset_peak_memory_stats()
    f()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def in_turns(args, ours, plain):
    "Return the seconds of `ours` in each round and their ratios to `plain`; the order alternates."
    times, ratios = [], []
    for i in range(args.rounds + 1):
        turns = [seconds(args, f) for f in ((ours, plain) if i % 2 else (plain, ours))]
        own, other = turns if i % 2 else turns[::-1]
        times.append(own)
        ratios.append(own / other)
    return times[1:], ratios[1:] # the first round warms up


def measure(args, name, plain_model, plain_step, images, ids):
    "Return a row of the table: one preset compared with no memory."
    words = [*VARIANTS.get(name, [f'model/memory={name}']),
             *([f'model.memory.num_memory_tokens={args.tokens}'] if args.tokens else [])]
    cost, plain_cost = (model_cost(compose(w).model)['model'] for w in (words, ['model/memory=off']))
    held = torch.cuda.memory_allocated() if args.device == 'cuda' else 0 # by the model without memory
    model, step = our_step(args, images, ids, *words)
    times, ratios = in_turns(args, step, plain_step)
    _, forward = in_turns(args, features(model, images, ids), features(plain_model, images, ids))
    memory = peak(step) - held if args.device == 'cuda' else 16 * cost.params + args.batch * cost.activations
    tokens = cfg.num_memory_tokens if (cfg := compose(words).model.memory).enabled else 0
    return dict(preset=name, tokens=tokens, params=cost.params,
                added_params=cost.params - plain_cost.params, gflops=round(cost.flops / 1e9, 3),
                flop_ratio=round(cost.flops / plain_cost.flops, 4), step_seconds=round(statistics.median(times), 4),
                step_ratio=round(statistics.median(ratios), 3),
                step_over_flops=round(statistics.median(ratios) * plain_cost.flops / cost.flops, 3),
                low=round(min(ratios), 3), high=round(max(ratios), 3),
                forward_ratio=round(statistics.median(forward), 3), memory_gb=round(memory / 1e9, 3),
                memory_is='measured' if args.device == 'cuda' else 'counted')


def judge(rows):
    "Return a line for each preset that has a goal."
    for r in rows:
        if r['tokens'] != 64 or r['preset'] not in GOALS: continue
        name, most = GOALS[r['preset']]
        yield (f"{r['preset']} with 64 tokens: {name} {r[name]:.3f} ({'meets' if r[name] <= most else 'MISSES'} <= "
               f"{most})")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--batch', type=int, help='pairs; 4 on the CPU, 256 on CUDA')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--tokens', type=int, help='memory tokens of every preset (default: those of the preset)')
    known = [*presets(), *VARIANTS]
    p.add_argument('--presets', nargs='+', default=known, choices=known, metavar='PRESET')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    args.batch = args.batch or (256 if args.device == 'cuda' else 4)
    images, ids = pairs(args)
    plain = our_step(args, images, ids, 'model/memory=off')
    print(f'{"preset":28} {"tokens":>6} {"params":>12} {"added":>10} {"GFLOPs":>7} {"x":>6} {"step x":>7} '
          f'{"/FLOPs":>6} {"from":>6} {"to":>6} '
          f'{"forward x":>9} {"GB":>6}')
    rows = []
    for name in args.presets:
        try: rows.append(r := measure(args, name, *plain, images, ids))
        except UserError as e: # a preset that cannot have so many tokens
            print(f'{name:28} {e}')
            continue
        print(f'{name:28} {r["tokens"]:6} {r["params"]:12,} {r["added_params"]:10,} {r["gflops"]:7.2f} '
              f'{r["flop_ratio"]:6.3f} '
              f'{r["step_ratio"]:7.3f} {r["step_over_flops"]:6.3f} {r["low"]:6.3f} {r["high"]:6.3f} '
              f'{r["forward_ratio"]:9.3f} {r["memory_gb"]:6.2f}', flush=True)
        if args.csv:
            store(args.csv, [r], device=args.device, batch=args.batch, rounds=args.rounds, precision=args.precision,
                  threads=torch.get_num_threads())
    print(*judge(rows), sep='\n')


if __name__ == '__main__': main()
