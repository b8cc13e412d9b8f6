"What every benchmark says of where its figures come from, and how it keeps them."
import os, sys
from datetime import date
from pathlib import Path
import pandas as pd
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
    append(path, [settings | row | origin for row in rows])


def append(path, rows):
    "Append rows, each a dict, to a CSV. Older rows may lack a column of the new ones."
    new, path = pd.DataFrame(rows, dtype=str), Path(path)
    if path.exists(): new = pd.concat([pd.read_csv(path, dtype=str), new])
    new.to_csv(path, index=False)
