"""Run all comparisons: one table of ratios, each beside the committed ratio, with regressions marked.

    python benchmarks/suite.py                          # what `make bench` runs: about 20 minutes on 2 quiet cores
    python benchmarks/suite.py --only imports capture   # some of them
    python benchmarks/suite.py --rounds 2               # a rough look: fewer rounds where a benchmark has rounds
    python benchmarks/suite.py --keep                   # also append what was measured to benchmarks/results/

Seconds of two machines cannot be compared; ratios of interleaved runs in one process nearly can, so ratios are checked.
A ratio is compared with the newest committed row of the same settings on the same kind of device. It is a regression if
it is worse by more than --tolerance (0.15); the exit status is then 1. Other load on the machine makes ratios noisy:
repeat before you conclude anything. The table is written to runs/bench.md. """
import argparse
import csv
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from results import append, machine

HERE = Path(__file__).parent
BETTER = dict(higher=1, lower=-1)


@dataclass(frozen=True)
class Part:
    "A benchmark and its compared columns."
    name:str                # Program, and CSV in results/
    what:str                # Description of its ratio
    figures:dict            # Column -> 'higher' or 'lower': which ratios are good
    settings:tuple = ()     # Columns that must be equal for two rows to be compared
    rounds:bool = True      # Whether it takes --rounds
    device:bool = True      # Whether it takes --device
    share:bool = False      # Results are overheads: 1 is added before they are compared


PARTS = [
    Part('imports', 'importing the model, over torch + timm + open_clip', dict(model_over_base='lower'), device=False),
    Part('loss_memory', "open_clip's ClipLoss over ours: time, memory",
         dict(speedup='higher', saving='higher'), ('loss', 'batch', 'dim', 'dtype')),
    Part('train_step', "open_clip's training step over ours: time",
         dict(speed_vs_open_clip='higher'), ('batch', 'precision', 'step')),
    Part('capture', 'forward with capture over without: time; bytes over full maps',
         dict(capture_over_plain='lower', capture_over_full_bytes='lower'), ('batch', 'precision', 'keep', 'tokens')),
    Part('mechanisms', 'step and forward with memory over those without: time',
         dict(step_ratio='lower', forward_ratio='lower'), ('batch', 'precision', 'preset', 'tokens')),
    Part('resets', 'watching memory over a plain step: extra time',
         dict(overhead='lower'), ('batch', 'precision'), share=True),
    Part('data', "our loader's pairs a second and core over open_clip's, over webdataset's",
         dict(over_open_clip='higher', over_webdataset='higher', of_decoder='higher'), ('images',), device=False),
    Part('dashboard', 'step with a dashboard over without: time',
         dict(ratio='lower'), ('model', 'batch', 'every'), rounds=False, device=False),
    Part('search', "indexing images over the loader alone: time",
         dict(index_over_loader='lower'), ('model', 'indexed', 'workers')),
]


def read(path):
    "Return the rows of a CSV (none if the file is missing)."
    if not path.exists(): return []
    with path.open(newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


def settings_of(part, row): return tuple(str(row.get(k)) for k in part.settings)


def on_gpu(row): return 'cores' not in row.get('machine', '')


def committed(part, row, rows):
    "Return the newest committed row of the same settings on the same kind of device, or None."
    same = [r for r in rows if settings_of(part, r) == settings_of(part, row) and on_gpu(r) == on_gpu(row)]
    return same[-1] if same else None


def lines(part, measured, rows, tolerance):
    "Return name, settings, ratio, committed ratio and verdict of each ratio."
    for row in measured:
        old = committed(part, row, rows)
        for figure, better in part.figures.items():
            now, before = float(row[figure]), float(old[figure]) if old else None
            worse = BETTER[better] * (before - now) / (before + part.share) if old else 0.
            verdict = ('new' if before is None else f'REGRESSION by {worse:.0%}' if worse > tolerance else
                       'as before' if worse > -tolerance else 'better')
            yield dict(benchmark=part.name, ratio=figure, settings=' '.join(settings_of(part, row)), now=f'{now:.3g}',
                       committed='' if before is None else f'{before:.3g}', good=better, verdict=verdict)


def run(part, args, folder):
    "Run one benchmark into a fresh CSV. Raises CalledProcessError if it fails."
    path = Path(folder)/f'{part.name}.csv'
    command = [sys.executable, str(HERE/f'{part.name}.py'), '--csv', str(path)]
    if args.rounds and part.rounds: command += ['--rounds', str(args.rounds)]
    if args.device and part.device: command += ['--device', args.device]
    subprocess.run(command, check=True)
    return path


def keep(part, path):
    "Append measured rows to the committed ones, without their folder."
    rows = read(path)
    for row in rows:
        row['command'] = row['command'].replace(str(path), f'benchmarks/results/{path.name}').replace(str(HERE),
                'benchmarks')
    append(HERE/'results'/path.name, rows)


def table(found, device):
    "Return the Markdown table."
    columns = ('benchmark', 'ratio', 'settings', 'now', 'committed', 'good', 'verdict')
    origin = f"{machine(device)}, {date.today()}, " + ', '.join(f'{p} {version(p)}'
                                                                for p in ('torch', 'timm', 'open_clip_torch', 'fastai'))
    rows = [columns, ('---',) * len(columns), *(tuple(f[c] for c in columns) for f in found)]
    what = '\n'.join(f'- `{p.name}`: {p.what}' for p in PARTS if any(f['benchmark'] == p.name for f in found))
    return f'{origin}\n\n' + '\n'.join(f"| {' | '.join(r)} |" for r in rows) + f'\n\n{what}\n'


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', choices=[part.name for part in PARTS], help='benchmarks to run')
    p.add_argument('--rounds', type=int, help='rounds of each benchmark that has rounds (default: its own)')
    p.add_argument('--device', help="'cpu' or 'cuda' (default: each benchmark's own)")
    p.add_argument('--tolerance', type=float, default=0.15, help='allowed relative worsening of a ratio')
    p.add_argument('--keep', action='store_true', help='append the results to benchmarks/results/')
    args = p.parse_args()
    import torch
    device, found, failed = args.device or ('cuda' if torch.cuda.is_available() else 'cpu'), [], []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            if args.only and part.name not in args.only: continue
            print(f'== {part.name}: {part.what}', flush=True)
            try: path = run(part, args, folder)
            except subprocess.CalledProcessError as e:
                failed.append(part.name)
                print(f'{part.name} failed with status {e.returncode}')
                continue
            found += lines(part, read(path), read(HERE/'results'/path.name), args.tolerance)
            if args.keep: keep(part, path)
    shown = table(found, device)
    Path('runs').mkdir(exist_ok=True)
    Path('runs/bench.md').write_text(shown, encoding='utf-8')
    worse = [f for f in found if f['verdict'].startswith('REGRESSION')]
    broken = f", failed: {', '.join(failed)}" if failed else ''
    print(f'\n{shown}\n{len(found)} ratios, {len(worse)} worse than committed{broken}; written to runs/bench.md')
    sys.exit(bool(worse or failed))


if __name__ == '__main__': main()
