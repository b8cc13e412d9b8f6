"What every benchmark says of where its figures come from, and how it keeps them."
import csv, os, sys
from datetime import date
from pathlib import Path
import torch


def machine(device='cpu'):
    "The processor, without its name on any network."
    if device == 'cuda': return torch.cuda.get_device_name()
    info = dict(l.split(':', 1) for l in Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines())
    model = next((v.strip() for k, v in info.items() if k.strip() == 'model name'), 'unknown processor')
    return f'{os.cpu_count()} cores, {model}'


def store(path, rows, device='cpu', **settings):
    "Append rows of figures to a CSV, each with its settings, command, machine, date and torch version."
    origin = dict(command=' '.join(['python', *sys.argv]), machine=machine(device), date=date.today(), torch=torch.__version__)
    rows = [settings | row | origin for row in rows]
    path = Path(path)
    new = not path.exists()
    with path.open('a', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]))
        if new: writer.writeheader()
        writer.writerows(rows)
