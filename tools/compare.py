"""Compare the final evaluations of two or more runs.

    python tools/compare.py runs/quickstart runs/quickstart_no_memory

A run is its folder, or the folder of all runs of one name: then the newest finished one is taken."""
import csv
import sys
from omegaconf import OmegaConf
from pathlib import Path

METRICS = ('i2t/R@1', 't2i/R@1', 'val_loss')

def run_folder(path):
    "Return the folder of one run: `path` itself, or the newest finished run in it."
    if (path/'metrics.csv').exists(): return path
    done = sorted(path.glob('*/DONE'))
    if not done: sys.exit(f'{path} has no metrics.csv and no finished run; give the folder of a run')
    return done[-1].parent

def final(folder):
    "Return the last row of metrics.csv with an evaluation, as numbers."
    with open(folder/'metrics.csv', encoding='utf-8', newline='') as file:
        rows = [r for r in csv.DictReader(file) if r.get(METRICS[0])]
    if not rows: sys.exit(f'{folder}/metrics.csv contains no evaluation ({METRICS[0]})')
    return {name: float(rows[-1][name]) for name in METRICS if rows[-1].get(name)}

def flat(node, prefix=''):
    "Flatten a nested mapping to {'a.b.c': value}."
    if not isinstance(node, dict): return {prefix[:-1]: node}
    return {k: v for name, child in node.items() for k, v in flat(child, f'{prefix}{name}.').items()}

def memory_of(config):
    "Describe the memory of a run."
    if not config['model.memory.enabled']: return 'no memory'
    readout = config.get('model.memory.readout', 'none')
    return f"{config['model.memory.num_memory_tokens']} memory tokens" + (readout != 'none')*f', read by {readout}'

def show(name, value): return f'{value:.4f}' if name == 'val_loss' else f'{100*value:.1f} %'

def series(items):
    "Join texts: 'a, b and c'."
    *first, last = items
    return f"{', '.join(first)} and {last}"

def sentence(labels, finals, seeds):
    "Return what single runs show, and what they do not."
    found = [f'{show(METRICS[0], f[METRICS[0]])} of the images with {label}' for f, label in zip(finals, labels)]
    return (f'A right caption came first for {series(found)}.\n'
            f'That is one run of each (seeds {series(map(str, seeds))}). Another seed moves all figures, so it does '
            'not show which is better: that takes several seeds of each.')

def main(*paths):
    folders = [run_folder(Path(p)) for p in paths]
    configs = [flat(OmegaConf.to_container(OmegaConf.load(f/'config.yaml'))) for f in folders]
    finals = [final(f) for f in folders]
    labels = [memory_of(c) for c in configs]
    width = max(map(len, labels))
    for folder, label, metrics in zip(folders, labels, finals):
        print(f'{label:<{width}}', '  '.join(f'{n} {show(n, v):>6}' for n, v in metrics.items()), f'  {folder}')
    others = {k for c in configs[1:] for k in configs[0].keys() | c.keys() if configs[0].get(k) != c.get(k)
        and not k.startswith(('model.memory.', 'training.logging.', 'training.run_dir'))}
    if others: print('Besides memory, the runs differ in:', ', '.join(sorted(others)))
    print(sentence(labels, finals, [c['training.seed'] for c in configs]))

if __name__ == '__main__':
    if len(sys.argv) < 3: sys.exit(__doc__)
    main(*sys.argv[1:])
