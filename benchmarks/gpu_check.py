"""Check a GPU in one command of at most 8 minutes: is half precision right, which part is wrong if not, how fast is it?

    python benchmarks/gpu_check.py                                    # everything, on CUDA if there is one
    python benchmarks/gpu_check.py --only kernels bisect              # find what makes gradients wrong
    python benchmarks/gpu_check.py --csv benchmarks/results/gpu_check.csv
    python benchmarks/gpu_check.py model=tiny --device cpu --batch 8  # overrides come first

Every section runs in a process of its own with a time limit. What fails or takes too long is a row with its reason.

- kernels: `F.scaled_dot_product_attention` alone. Each kernel of torch, in each dtype, with the head widths, lengths,
  masks and strides of our towers: the relative error of the gradients, and of the output, from attention by definition
  in float64, with the same rounded inputs. A row shows the worst case.
- bisect: the gradient of one batch of a MemoryCLIP, for all parameters and for vision, memory, text, heads and blocks,
  in each precision under one changed setting at a time: ||g - g64|| / ||g64||, where g64 is the gradient in float64 of
  the same weights and batch with attention by definition.
- cells: the notebook cells flagged `gpu` (`nbdev-test --flags gpu`).
- train_step, loss_memory, capture: those benchmarks, beside the committed ratios.
- overhead, compile: cost of checkpoints and logs; time and gradient of compiled blocks beside eager ones.
- host: a step with and without waits for the device, with a patch embedding in channels-last format (and the difference
  of its gradient), with copies of pinned uint8 batches, and with compiled blocks and captions of changing lengths,
  trimmed or padded to multiples of 8.

The last lines conclude. The exit status is 1 if a row is OFF or failed.
"""
import argparse
import copy
import json
import psutil
import re
import statistics
import subprocess
import suite
import sys
import tempfile
import time
import torch
import torch.nn.functional as F
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from memory_vlm import loss
from memory_vlm.clip import MEMORY_NAMES, MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.tokenizer import trim
from memory_vlm.evaluation.validation import PRECISIONS
from memory_vlm.learner import make_loss
from memory_vlm.models.attention_hooks import WITHOUT_CUDNN_ATTENTION
from pathlib import Path
from precision import difference, gradients
from results import machine, store
from shutil import which
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_step import our_step, pairs, seconds
from unittest.mock import patch

HERE = Path(__file__).parent
# Largest relative error of the gradient that counts as rounding, of the whole model and of attention alone. On a CPU
# the default model has 0.025 in bf16 and 0.003 in fp16.
LIMITS = dict(fp32=0.005, bf16=0.08, fp16=0.02)
KERNEL_LIMITS = dict(fp32=0.002, bf16=0.02, fp16=0.004)
KERNELS = dict(flash=SDPBackend.FLASH_ATTENTION, efficient=SDPBackend.EFFICIENT_ATTENTION, math=SDPBackend.MATH,
               cudnn=SDPBackend.CUDNN_ATTENTION)
GROUPS = ('all', 'vision', 'memory', 'text', 'heads')
DEFAULT, IN_A_FIT, DEFINITION = "torch's choice", 'as in a fit', 'attention by definition'


def row(section, setting, precision='', result='', verdict='', detail='', **more):
    "Return a row of the table; `more` are further columns of the CSV."
    return dict(section=section, setting=setting, precision=precision, result=result, verdict=verdict,
                detail=detail) | more


def reason(error):
    "Return the first line of an error."
    return f'{type(error).__name__}: {next(iter(str(error).splitlines()), "")[:110]}'


def kernels_of(device): return {k: v for k, v in KERNELS.items() if device == 'cuda' or k in ('flash', 'math')}


def by_definition(q, k, v, attn_mask=None, dropout_p=0., is_causal=False, **kwargs):
    "Compute attention without a fused kernel, in the dtype of the inputs; autocast computes its softmax in fp32."
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if is_causal: attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool: logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None: logits = logits + attn_mask
    return logits.softmax(-1) @ v


def replaced(attend): return patch.object(F, 'scaled_dot_product_attention', attend)


# kernels: name of a case -> queries, memory tokens appended to keys and values, mask
CASES = {'vision': (261, 0, None), 'keys and values': (197, 64, None), 'odd': (33, 8, None),
         'causal': (77, 0, 'causal'), 'causal mask': (77, 0, 'added'), 'trimmed mask': (18, 0, 'added'),
         'bool mask': (77, 0, 'bool'), 'mask of 64': (64, 0, 'added'), 'mask of 192': (192, 0, 'added')}


def attention_gradients(attend, qkv, memory, mask, upstream):
    "Return output and gradients of attention with `MemoryAttention`'s strides: packed (B,N,3,H,d), memory (H,M,d)."
    leaves = [t.detach().clone().requires_grad_() for t in (qkv, memory)]
    q, k, v = leaves[0].permute(2, 0, 3, 1, 4).unbind(0) # (B,H,N,d)
    more = leaves[1].expand(len(q), *memory.shape)
    if memory.numel(): k, v = (torch.cat([t, more], dim=2) for t in (k, v))
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    kwargs = dict(causal=dict(is_causal=True), bool=dict(attn_mask=~future),
                  added=dict(attn_mask=torch.zeros_like(future, dtype=q.dtype).masked_fill(future, -torch.inf)))
    out = attend(q, k, v, **kwargs.get(mask, {})).transpose(1, 2).flatten(2) # (B,N,H d)
    return out.detach(), torch.autograd.grad((out * upstream).sum(), leaves[:1 + bool(memory.numel())])


def kernels(args):
    "Compare each attention kernel with float64."
    for name, backend in kernels_of(args.device).items():
        for precision in args.precisions:
            dtype, found, missing = PRECISIONS[precision] or torch.float32, {}, {}
            for case, (length, tokens, mask) in CASES.items():
                for width in (16, 32, 64):
                    g = torch.Generator().manual_seed(0)
                    sizes = (2, length, 3, 4, width), (4, tokens, width), (2, length, 4 * width)
                    inputs = [torch.randn(s, generator=g).to(args.device, dtype) for s in sizes]
                    def run(attend, inputs): return attention_gradients(attend, *inputs[:2], mask, inputs[2])
                    exact = run(by_definition, [t.double() for t in inputs])
                    try:
                        with sdpa_kernel(backend): ours = run(F.scaled_dot_product_attention, inputs)
                    except RuntimeError as e:
                        if 'CUDA error' in str(e): raise
                        missing[f'{case}/{width}'] = reason(e)
                        continue
                    def error(a, b): return ((a - b).norm() / b.norm()).item()
                    found[f'{case}/{width}'] = (max(error(a, b) for a, b in zip(ours[1], exact[1])),
                                                error(ours[0], exact[0]))
            if not found:
                yield row('kernels', name, precision, verdict='none', detail='torch has no such kernel here')
                continue
            wrong = [c for c, (e, _) in found.items() if not e <= KERNEL_LIMITS[precision]] # or nan
            worst = next((c for c, (e, _) in found.items() if e != e), max(found, key=lambda c: found[c][0]))
            detail = f'output {max(o for _, o in found.values()):.2g}; worst: {worst}; {len(found)} cases'
            if missing: detail += f', {len(missing)} not supported'
            if wrong: detail = f'wrong: {", ".join(wrong)}; ' + detail
            yield row('kernels', name, precision, f'{found[worst][0]:.2g}', 'OFF' if wrong else 'ok', detail,
                      cases=' '.join(f'{c.replace(" ", "_")}={e:.2g}' for c, (e, _) in found.items()))


# bisect
@contextmanager
def tf32_off():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = False
    try: yield
    finally: matmul.allow_tf32, conv.allow_tf32 = before


@contextmanager
def in_fp32(model, name, device):
    "Run a method of the model without autocast."
    method = getattr(model, name)
    def run(*inputs, **kwargs):
        with torch.autocast(device, enabled=False): return method(*inputs, **kwargs)
    with patch.object(model, name, run): yield


@contextmanager
def defined(model):
    "Compute attention by definition, and blocks twice, which saves memory."
    model.set_grad_checkpointing(True)
    try:
        with replaced(by_definition): yield
    finally: model.set_grad_checkpointing(False)


def only(backend):
    "Select an attention kernel, and torch's unfused one where it is not supported."
    others = [SDPBackend.MATH] if backend != SDPBackend.MATH else []
    return sdpa_kernel([backend, *others], set_priority=True)


def settings(device):
    "Return settings by name: what is to blame if only this setting is right, and a function of the model to enter it."
    table = {DEFAULT: (None, lambda m: nullcontext()),
             IN_A_FIT: ("cuDNN's attention kernel", lambda m: WITHOUT_CUDNN_ATTENTION)}
    for name, backend in kernels_of(device).items():
        table[f'kernel {name}'] = (None, lambda m, b=backend: only(b))
    return table | {
        DEFINITION: ('fused attention', defined),
        'loss products in fp32': ('the products of the loss', lambda m: patch.object(loss, '_product_dtype', wide)),
        'TF32 off': ('TF32', lambda m: tf32_off()),
        'vision in fp32': ('the vision tower', lambda m: in_fp32(m, 'encode_image', device)),
        'text in fp32': ('the text tower', lambda m: in_fp32(m, 'encode_text', device)),
        'no memory': ('memory', lambda m: nullcontext())}


def wide(image, text): return torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)


@contextmanager
def record_kernels():
    "Count which attention kernels torch selects."
    used, attend = Counter(), F.scaled_dot_product_attention
    names = {backend.value: name for name, backend in KERNELS.items()}
    def recorded(q, k, v, attn_mask=None, dropout_p=0., is_causal=False, **kwargs):
        cast, device = (q, k, v), q.device.type
        if torch.is_autocast_enabled(device): cast = [t.to(torch.get_autocast_dtype(device)) for t in cast]
        mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(cast[0].dtype)
        choice = torch._fused_sdp_choice(*cast, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal)
        used[names.get(choice, str(choice)) + (' with mask' if mask is not None else '')] += 1
        return attend(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **kwargs)
    with replaced(recorded): yield used


def groups_of(model):
    "Return names of parameters: by tower, and by block."
    memory = model.matching(MEMORY_NAMES)
    def group(name):
        if name in memory: return 'memory'
        if name.startswith(('visual.head', 'text.text_projection', 'logit_')): return 'heads'
        return 'vision' if name.startswith('visual') else 'text'
    names, blocks = {g: [] for g in GROUPS}, {}
    for name, _ in model.named_parameters():
        names['all'].append(name)
        names[group(name)].append(name)
        if m := re.match(r'(visual)\.blocks\.(\d+)|(text)\.transformer\.resblocks\.(\d+)', name):
            blocks.setdefault('.'.join(filter(None, m.groups())), []).append(name)
    return names, blocks


def make_pair(args, *words):
    "Return a model and its exact gradients: in float64, with attention by definition."
    torch.manual_seed(0)
    model = MemoryCLIP.from_config(compose([*args.overrides, *words]).model).to(args.device).train()
    exact = copy.deepcopy(model).double()
    with defined(exact): return model, gradients(in_precision(args, 'fp32'), exact, *inputs_of(args, model.cfg))


def in_precision(args, precision): return argparse.Namespace(**vars(args) | dict(precision=precision))


def inputs_of(args, cfg):
    "Return the images and captions of train_step.py, cut to the sizes of a model."
    images, ids = pairs(args)
    short = ids if cfg.text.max_len == ids.shape[1] else trim(ids)
    return images[..., :cfg.image_size, :cfg.image_size].contiguous(), short


def bisect(args):
    "Compare gradients with float64 under each setting."
    with_memory, without = make_pair(args), make_pair(args, 'model/memory=off')
    for precision in args.precisions:
        for setting, (_, enter) in settings(args.device).items():
            net, right = without if setting == 'no memory' else with_memory
            try:
                with ExitStack() as stack:
                    stack.enter_context(enter(net))
                    used = {} if setting == DEFINITION else stack.enter_context(record_kernels())
                    found = gradients(in_precision(args, precision), net, *inputs_of(args, net.cfg))
            except RuntimeError as e:
                if 'CUDA error' in str(e): raise
                net.zero_grad() # gradients of a part of the model
                yield row('bisect', setting, precision, verdict='failed', detail=reason(e))
                continue
            def errors(groups): # idle parameters have no gradient
                names = {g: [n for n in ns if n in right] for g, ns in groups.items()}
                return {g: difference(found, right, ns) for g, ns in names.items() if ns}
            towers, blocks = map(errors, groups_of(net))
            worst = next((b for b, e in blocks.items() if e != e), max(blocks, key=blocks.get))
            detail = ' '.join(f'{g} {e:.2g}' for g, e in towers.items() if g != 'all')
            detail += f'; worst block {worst} {blocks[worst]:.2g}'
            if used: detail += '; ' + ', '.join(f'{n} x {k}' for k, n in used.items())
            yield row('bisect', setting, precision, f'{towers["all"]:.2g}',
                      'ok' if towers['all'] <= LIMITS[precision] else 'OFF', detail,
                      blocks=' '.join(f'{b}={e:.2g}' for b, e in blocks.items()),
                      **{f'error_{g}': f'{e:.2g}' for g, e in towers.items()})


def conclude(rows):
    "Return one line for each precision: whether its gradients are right, and what is to blame if not."
    lines, table = [], settings('cuda')
    for precision in PRECISIONS:
        own = [r for r in rows if r['precision'] == precision]
        found = {r['setting']: float(r['result']) for r in own if r['section'] == 'bisect' and r['result']}
        alone = [r['setting'] for r in own if r['section'] == 'kernels' and r['verdict'] == 'OFF']
        if alone: lines.append(f'{precision}: attention alone has wrong gradients with {named(alone)}')
        wrong = {s for s, e in found.items() if not e <= LIMITS[precision]} # or nan
        in_model = [k for k in KERNELS if f'kernel {k}' in wrong]
        affected = [s for s in (DEFAULT, IN_A_FIT) if s in wrong]
        if not affected:
            if DEFAULT in found:
                other = f'; {named(in_model)}, not selected by torch, differs by more' if in_model else ''
                lines.append(f'{precision}: gradients differ from float64 by {found[DEFAULT]:.2%}, rounding{other}')
            continue
        cures = [s for s in found if s not in wrong and table[s][0]]
        if DEFINITION in cures:
            blame = f'{named(in_model)} ({found[DEFINITION]:.2%} by definition)' if in_model else table[DEFINITION][0]
        else: blame = ' or '.join(table[s][0] for s in cures)
        lines.append(f'{precision}: gradients differ from float64 by {found[affected[0]]:.2%}, more than rounding; '
                     f'fits are {"" if IN_A_FIT in affected else "not "}affected; ' + (f'culprit: {blame}' if blame else
                     'no setting removes the difference: see towers and blocks of its row'))
    return lines


def named(kernels): return 'the attention kernel ' + ' and '.join(kernels)


# Programs
def last_words(text):
    "Return the last line that names an error, else the last line."
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['no output']
    return ([line for line in lines if re.match(r'[\w.]*(Error|Exception)\b', line)] or lines)[-1][:110]


def program(command):
    "Run a command; return its output. Raises RuntimeError with the reason if it fails."
    done = subprocess.run([str(c) for c in command], capture_output=True, encoding='utf-8', errors='replace')
    if done.returncode == 0: return done.stdout
    raise RuntimeError(f'status {done.returncode}: {last_words(done.stdout + done.stderr)}')


def cells(args):
    "Run the notebook cells flagged `gpu`."
    if args.device != 'cuda':
        yield row('cells', 'gpu', verdict='skipped', detail='these cells need CUDA')
        return
    for path in sorted((HERE.parent/'nbs').rglob('*.ipynb')):
        if '"#| gpu' not in path.read_text(encoding='utf-8'): continue
        name = path.relative_to(HERE.parent).as_posix()
        try: program([which('nbdev-test', path=Path(sys.executable).parent), path, '--flags', 'gpu'])
        except RuntimeError as e: yield row('cells', name, verdict='failed', detail=str(e))
        else: yield row('cells', name, verdict='ok')


def compared(name, args, *options):
    "Run a benchmark of the suite in a small size; yield its ratios beside the committed ones."
    part = next(p for p in suite.PARTS if p.name == name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'rows.csv'
        program([sys.executable, HERE/f'{name}.py', '--csv', path, '--device', args.device, *options])
        rows = suite.read(path)
    committed = [r for p in sorted((HERE/'results').glob(f'{name}*.csv')) for r in suite.read(p)] # train_step_cuda too
    for r in suite.lines(part, rows, committed, 0.15):
        before = f'committed {r["committed"]}, {r["verdict"]}' if r['committed'] else ''
        yield row(name, f'{r["ratio"]} ({r["settings"]})', result=r['now'], verdict='info', detail=before)


def in_speed(args): return ('fp32', 'bf16') if args.device == 'cuda' else ('fp32',)


def train_step(args):
    small = ['--batch', 2, '--rounds', 1] if args.device == 'cpu' else ['--rounds', 3]
    for precision in in_speed(args): yield from compared('train_step', args, *small, '--precision', precision)


def loss_memory(args):
    yield from compared('loss_memory', args, '--rounds', 3, *(['--batch', 256] if args.device == 'cpu' else []))


def capture(args):
    small = ['--batch', 1, '--rounds', 1, '--tokens', 8] if args.device == 'cpu' else ['--batch', 64, '--rounds', 3]
    for precision in in_speed(args): yield from compared('capture', args, *small, '--precision', precision)


def overhead(args):
    words = [] if args.device == 'cpu' else ['--config-name', 'default', 'training.batch_size=64']
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'rows.csv'
        program([sys.executable, HERE/'overhead.py', '--steps', 6, '--csv', path, *words])
        found, = suite.read(path)
    for name in ('step_seconds', 'checkpoint_share', 'log_share'):
        yield row('overhead', name, result=found[name], verdict='info', detail=f'configuration {found["config"]}')


def compile(args):
    "Compare compiled blocks with eager ones: gradient of the first step, and time."
    args = in_precision(args, 'bf16' if args.device == 'cuda' else 'fp32')
    exact = None
    for name in ('eager', 'compiled'):
        torch.manual_seed(0)
        model = MemoryCLIP.from_config(compose(args.overrides).model) # for its sizes
        images, ids = inputs_of(args, model.cfg)
        torch.manual_seed(0)
        model, step = our_step(args, images, ids, *args.overrides)
        if name == 'compiled': model.compile_blocks()
        with WITHOUT_CUDNN_ATTENTION:
            start = time.perf_counter()
            found = gradients(args, model, images, trim(ids))
            first = time.perf_counter() - start
            later = statistics.median(seconds(args, step) for _ in range(4))
        exact = exact or found
        error = difference(found, exact, list(exact))
        yield row('compile', name, args.precision, f'{later:.4f}', 'ok' if error <= LIMITS[args.precision] else 'OFF',
                  f'seconds a step; the first {first:.1f}; gradient differs from eager by {error:.2g}')


def host(args):
    "Time steps that differ in what the host waits for, in the format of images, and in the lengths of captions."
    args, rounds = in_precision(args, 'bf16' if args.device == 'cuda' else 'fp32'), 2 if args.device == 'cpu' else 10
    torch.manual_seed(0)
    model = MemoryCLIP.from_config(compose(args.overrides).model) # for its sizes
    images, ids = inputs_of(args, model.cfg)
    short, loss = trim(ids), make_loss(compose(args.overrides).model.contrastive)
    model, _ = our_step(args, images, ids, *args.overrides)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    def step(waits=0, images=images, ids=short):
        with torch.autocast(args.device, PRECISIONS[args.precision], enabled=args.precision != 'fp32'):
            value = loss(model(images, ids), None)
        if waits > 2: value.item()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        if waits > 1: torch.stack([value.detach().float(), norm]).tolist()
        opt.step()
        opt.zero_grad()
        if waits: value.detach().cpu() # fastai's Recorder
    def timed(f):
        f()
        return statistics.median(seconds(args, lambda: [f() for _ in range(rounds)]) / rounds for _ in range(3))
    def measured(setting, f, detail=''):
        return row('host', setting, args.precision, f'{timed(f):.4f}', 'info', f'seconds a step{detail}')
    with WITHOUT_CUDNN_ATTENTION:
        for waits, what in ((3, 'three waits'), (2, 'two waits, as in a fit'), (1, 'one wait'), (0, 'no wait')):
            yield measured(what, partial(step, waits))
        plain, last = gradients(args, model, images, short), images.contiguous(memory_format=torch.channels_last)
        model.visual.patch_embed.proj.to(memory_format=torch.channels_last)
        error = difference(gradients(args, model, last, short), plain, list(plain))
        found = measured('channels-last patches', partial(step, images=last), f'; gradient differs by {error:.2g}')
        yield found | dict(verdict='ok' if error <= LIMITS[args.precision] else 'OFF')
        model.visual.patch_embed.proj.to(memory_format=torch.contiguous_format)
        if args.device != 'cuda':
            yield row('host', 'copies and compiled lengths', verdict='skipped', detail='these need CUDA')
            return
        pinned, side = images.cpu().pin_memory(), torch.cuda.Stream()
        def on_side_stream():
            with torch.cuda.stream(side): x = pinned.to(args.device, non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
            x.record_stream(torch.cuda.current_stream())
            step(images=x)
        yield measured('blocking copies', lambda: step(images=images.cpu().to(args.device)))
        yield measured('pinned copies', lambda: step(images=pinned.to(args.device, non_blocking=True)))
        yield measured('pinned copies, side stream', on_side_stream)
        model.compile_blocks()
        lengths = [short.shape[1] - i for i in range(6)]
        for what, multiple in (('compiled, any length', 1), ('compiled, multiples of 8', 8)):
            several = [short[:, :-(-n // multiple) * multiple] for n in lengths] # the longest captions are cut
            yield measured(what, lambda: [step(ids=x) for x in several], ' of six lengths, after the compilation')


# Name -> function of the arguments that yields rows, share of the time. What a section leaves goes to the others.
SECTIONS = dict(kernels=(kernels, 3), bisect=(bisect, 6), cells=(cells, 3), train_step=(train_step, 3),
                loss_memory=(loss_memory, 2), capture=(capture, 2), compile=(compile, 5), overhead=(overhead, 3),
                host=(host, 3))


def run_section(name, args, limit):
    "Run a section in a process of its own; return its rows, those before a failure too."
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder)/'rows', Path(folder)/'log'
        command = [sys.executable, __file__, *args.overrides, '--run', name, '--rows', str(path),
                   '--device', args.device, '--batch', str(args.batch), '--precisions', *args.precisions]
        with log.open('w') as f: process = psutil.Popen(command, stdout=f, stderr=subprocess.STDOUT)
        try: status, failure = process.wait(limit), None
        except (psutil.TimeoutExpired, KeyboardInterrupt) as e:
            with suppress(psutil.NoSuchProcess): # it may end meanwhile
                for p in [*process.children(recursive=True), process]: p.kill()
            process.wait()
            if isinstance(e, KeyboardInterrupt): raise
            status, failure = None, f'stopped after its {limit:.0f} s'
        if status: failure = f'status {status}: {last_words(log.read_text(encoding="utf-8", errors="replace"))}'
        rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []
    return rows + ([row(name, 'the section', verdict='failed', detail=failure)] if failure else [])


def show(rows):
    "Return the table as text."
    columns = ('section', 'setting', 'precision', 'result', 'verdict', 'detail')
    shown = [columns, *(tuple(str(r[c]) for c in columns) for r in rows)]
    widths = [max(len(r[i]) for r in shown) for i in range(len(columns) - 1)]
    return '\n'.join('  '.join([*(v.ljust(w) for v, w in zip(r, widths)), r[-1]]).rstrip() for r in shown)


def parse(words=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('overrides', nargs='*', help='of the configuration, such as model=tiny (the default on a CPU)')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--batch', type=int, help='pairs of `bisect` and `compile`; 8 on the CPU, 256 on CUDA')
    p.add_argument('--precisions', nargs='+', choices=list(PRECISIONS), default=list(PRECISIONS))
    p.add_argument('--only', nargs='+', choices=list(SECTIONS), help='sections to run')
    p.add_argument('--minutes', type=float, default=8., help='time limit of everything')
    p.add_argument('--csv', help='append the results to this file')
    p.add_argument('--run', choices=list(SECTIONS), help=argparse.SUPPRESS)
    p.add_argument('--rows', type=Path, help=argparse.SUPPRESS)
    args = p.parse_args(words)
    if args.device == 'cpu' and not args.overrides: args.overrides = ['model=tiny']
    args.batch = args.batch or (256 if args.device == 'cuda' else 8)
    return args


def main():
    args = parse()
    if args.run:
        with args.rows.open('w', encoding='utf-8') as f:
            for r in SECTIONS[args.run][0](args): print(json.dumps(r), file=f, flush=True)
        return
    cudnn = torch.backends.cudnn.version() if args.device == 'cuda' else None
    origin = f'{machine(args.device)}, torch {torch.__version__}' + (f', cuDNN {cudnn}' if cudnn else '')
    print(origin, flush=True)
    names, rows, end = args.only or list(SECTIONS), [], time.monotonic() + 60 * args.minutes - 5
    for i, name in enumerate(names):
        print(f'== {name}', flush=True)
        share = SECTIONS[name][1] / sum(SECTIONS[n][1] for n in names[i:])
        rows += run_section(name, args, share * max(0, end - time.monotonic()))
    bad = [r for r in rows if r['verdict'] in ('OFF', 'failed')]
    print('', show(rows), '', *conclude(rows), f'{len(rows)} rows, {len(bad)} off or failed', sep='\n')
    if args.csv: store(args.csv, rows, device=args.device, batch=args.batch, cudnn=cudnn or '',
                       overrides=' '.join(args.overrides))
    sys.exit(bool(bad))


if __name__ == '__main__': main()
