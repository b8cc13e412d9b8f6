"Record the origin of benchmark results and append them to the tables."
import os
import pandas as pd
import platform
import sys
import torch
from datetime import date
from pathlib import Path


def machine(device='cpu'):
    "Return the processor, without the host name."
    if device == 'cuda': return torch.cuda.get_device_name()
    cpuinfo = Path('/proc/cpuinfo') # Linux only
    lines = cpuinfo.read_text(encoding='utf-8').splitlines() if cpuinfo.exists() else []
    model = next((v.strip() for k, _, v in (l.partition(':') for l in lines) if k.strip() == 'model name'), None)
    return f'{os.cpu_count()} cores, {model or platform.processor() or platform.machine() or "unknown processor"}'


def store(path, rows, device='cpu', **settings):
    "Append rows of results to a CSV, each with its settings, command, machine, date and torch version."
    origin = dict(command=' '.join(['python', *sys.argv]), machine=machine(device), date=date.today(),
                  torch=torch.__version__)
    append(path, [settings | row | origin for row in rows])


def append(path, rows):
    "Append rows (dicts) to a CSV. Older rows may lack some columns of the new ones."
    new, path = pd.DataFrame(rows, dtype=str), Path(path)
    if path.exists(): new = pd.concat([pd.read_csv(path, dtype=str), new])
    new.to_csv(path, index=False)
