"""Cost of capturing attention, compared with a plain forward pass and with hooks on explicit attention.

    python benchmarks/capture.py                     # default architecture, batch 8, with 8 and with 64 memory tokens
    python benchmarks/capture.py --precision bf16 --batch 64 --device cuda
    python benchmarks/capture.py --csv benchmarks/results/capture.csv

`capture` keeps the attention of memory and CLS and the attention to memory, in fp16, for all layers and heads, while
the model keeps using fused attention. The usual method turns fused attention off and stores every full map in fp32 with
a hook. The three forward passes are interleaved in one process, in an order that rotates with the rounds; a ratio is
the median over rounds of the ratios within a round. The first round is not counted.

- bits: whether the output with capture is bit-identical to the output without it.
- error: largest difference between captured attention (in the precision of the softmax) and explicit attention.
- bytes: memory kept by capture over memory kept by the usual method, for the same forward pass.

On a shared machine, `--clock cpu --threads 1` measures processor time instead of wall-clock time.
"""
import argparse
import statistics
import time
import torch
from memory_vlm.attention import capture
from memory_vlm.config import compose
from memory_vlm.models.attention_hooks import explicit_attention
from memory_vlm.vision import make_vit
from results import machine, store

# Time over the plain forward and bytes over full maps that DESIGN asks for, on a CPU in fp32 with a batch of 8
GOALS = {8: (1.05, 0.1), 64: (1.10, 0.25)}


def usual_way(vit, images):
    "Run a forward pass with explicit attention; return full fp32 maps of every layer on the CPU, as `capture` does."
    maps = []
    def attend(q, k, v, **kwargs):
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        maps.append(weights.float().cpu())
        return weights.to(v.dtype) @ v
    for block in vit.blocks: block.attn.attend = attend
    try: return vit(images), maps
    finally:
        for block in vit.blocks: del block.attn.attend


def captured(vit, images, **kwargs):
    "Run a forward pass under `capture`, with its arrays on the CPU."
    with capture(vit, **kwargs) as maps: out = vit(images)
    maps.settle()
    return out, maps


def largest_error(vit, images):
    "Return the largest difference between captured weights and explicit attention on the same queries and keys."
    full = []
    def look(attn, args): full.append(explicit_attention(*attn.project(args[0])[:2]).cpu())
    hooks = [b.attn.register_forward_pre_hook(look) for b in vit.blocks]
    try: _, maps = captured(vit, images, dtype=torch.float32)
    finally:
        for h in hooks: h.remove()
    layout, full = vit.layout, torch.stack(full, 1) # (B,L,H,N,K)
    pairs = [(maps.from_cls, full[..., layout.readout.start, :]), (maps.from_memory, full[..., layout.memory, :]),
             (maps.to_memory, full[..., layout.memory])]
    return max(float((a - b).abs().max()) for a, b in pairs)


def measure(args, num_tokens):
    "Return one row of the table."
    torch.manual_seed(0)
    vit = make_vit(compose([f'model.memory.num_memory_tokens={num_tokens}']).model).to(args.device).eval()
    for block in vit.blocks: block.attn.qkv.weight.data *= 2 # attention far from uniform
    images = torch.randn(args.batch, 3, 224, 224, device=args.device)
    clock = time.process_time if args.clock == 'cpu' else time.perf_counter
    ways = dict(plain=lambda: vit(images), capture=lambda: captured(vit, images, device=args.keep),
                usual=lambda: usual_way(vit, images))
    def seconds(way):
        if args.device == 'cuda': torch.cuda.synchronize()
        start = clock()
        ways[way]()
        if args.device == 'cuda': torch.cuda.synchronize()
        return clock() - start
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.precision == 'bf16'):
        rounds = []
        for i in range(args.rounds + 1):
            order = [*ways][i % 3:] + [*ways][:i % 3]
            rounds.append({way: seconds(way) for way in order})
        (out, maps), full = captured(vit, images), usual_way(vit, images)[1]
        bits = torch.equal(out, vit(images))
        error = largest_error(vit, images)
    ratio = {way: statistics.median(r[way] / r['plain'] for r in rounds[1:]) for way in ways}
    return dict(tokens=num_tokens, plain_seconds=round(statistics.median(r['plain'] for r in rounds[1:]), 4),
                capture_over_plain=round(ratio['capture'], 3), usual_over_plain=round(ratio['usual'], 3),
                bits_equal=bits, largest_error=f'{error:.1e}', capture_mib=round(maps.nbytes / 2**20, 1),
                capture_over_full_bytes=round(maps.nbytes / sum(m.nbytes for m in full), 4))


def show(row, with_goals):
    "Print the results for one number of tokens."
    goals = GOALS.get(row['tokens'], (None, None)) if with_goals else (None, None)
    def verdict(value, goal): return '' if goal is None else f"  ({'meets' if value <= goal else 'MISSES'} <= {goal})"
    time, size = row['capture_over_plain'], row['capture_over_full_bytes']
    print(f"\n{row['tokens']} memory tokens: plain forward {row['plain_seconds']:.3f} s\n"
          f'{time:10} times the plain forward{verdict(time, goals[0])}\n'
          f"{row['usual_over_plain']:10} times the plain forward for the usual way\n"
          f'{size:10} of the bytes of full maps{verdict(size, goals[1])}\n'
          f"{row['capture_mib']:10} MiB captured\n"
          f"{row['largest_error']:>10} largest difference from explicit attention\n"
          f"{'equal' if row['bits_equal'] else 'DIFFERENT':>10} output bits", flush=True)


def main():
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--tokens', type=int, nargs='+', default=[8, 64], help='memory tokens')
    p.add_argument('--batch', type=int, default=8, help='images')
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--device', default='cuda' if cuda else 'cpu')
    p.add_argument('--keep', default='cpu', help="where captured arrays are kept: 'cpu', or 'cuda' to move nothing")
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--threads', type=int, help='CPU threads')
    p.add_argument('--clock', choices=['wall', 'cpu'], default='wall', help='wall-clock time or processor time')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    print(f'{args.precision}, batch {args.batch}, {machine(args.device)}, torch {torch.__version__}')
    rows = []
    for tokens in args.tokens:
        rows.append(measure(args, tokens))
        show(rows[-1], with_goals=(args.batch, args.precision, args.device) == (8, 'fp32', 'cpu'))
    if args.csv: store(args.csv, rows, device=args.device, batch=args.batch, precision=args.precision,
                        keep=args.keep, clock=args.clock, threads=torch.get_num_threads())


if __name__ == '__main__': main()
