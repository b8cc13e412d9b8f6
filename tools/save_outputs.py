"""Run notebooks and save their outputs: `python tools/save_outputs.py [NOTEBOOK ...]`; without arguments the tutorials.

Tutorials train for minutes and run in their own kernel; module notebooks run as `nbdev-test` runs them. Live widgets
(blank without a kernel) with their images, progress bars, times and warnings are dropped, so that a notebook that is
run again is the same, and images are stored with 256 colors."""
import base64
import io
import nbformat
import os
import re
import subprocess
import sys
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from pathlib import Path
from PIL import Image

NBS = Path(__file__).resolve().parent.parent/'nbs'
TEACHING = [*sorted((NBS/'tutorials').glob('*.ipynb')),
            *(NBS/'explain'/f'{n}.ipynb' for n in ('configuration', 'figures', 'what_attention_shows'))]
PROGRESS = r'(?m)\r|^(Run folder: |step .*\d samples/s|epoch .* time \d)' # bars, or the lines in place of them
# the time of each epoch in fastai's tables, and the date of an exported page
VARIES = [(r'<th>time</th>|<td>(\d+:)?\d+:\d\d</td>', ''), (r'(Made by Memory-VLM), \d{4}-\d\d-\d\d', r'\1')]
WIDGET = 'application/vnd.jupyter.widget-view+json'


def worth_keeping(output):
    "Return whether an output is useful without a kernel."
    if output.output_type == 'stream': return output.name == 'stdout' and not re.search(PROGRESS, output.text)
    data = output.get('data', {})
    html = str(data.get('text/html', 'none'))
    return (output.output_type == 'error' or bool(data) and WIDGET not in data and bool(html) # '': an image to come
            and not re.search('<progress|class=.progress|^<div class="mvlm-[0-9a-f]+-still">', html)) # bars of fastai


def shrink(data):
    "Store an image once, with 256 colors if that makes it smaller."
    if 'image/png' not in data: return
    data.pop('image/jpeg', None) # IPython shows a PIL image in both formats
    image, small = Image.open(io.BytesIO(base64.b64decode(data['image/png']))), io.BytesIO()
    if image.mode == 'P': return
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(small, 'PNG', optimize=True)
    text = base64.b64encode(small.getvalue()).decode()
    if len(text) < len(data['image/png']): data['image/png'] = text


def settle(data):
    "Drop what differs from run to run, and the Markdown that repeats HTML."
    if 'text/html' in data: data.pop('text/markdown', None)
    for kind in ('text/html', 'text/plain'):
        for pattern, kept in VARIES if kind in data else (): data[kind] = re.sub(pattern, kept, data[kind])


def tidy(nb):
    "Drop useless outputs of a notebook, what differs from run to run, and compress its images."
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.outputs if worth_keeping(o)]
        for o in cell.get('outputs', []):
            shrink(o.get('data', {}))
            settle(o.get('data', {}))
    nb.metadata.pop('widgets', None)


def run(path):
    "Run a notebook in its folder and save it with its outputs."
    if path in TEACHING:
        nb = nbformat.read(path, 4)
        NotebookClient(nb, timeout=1800, kernel_name='python3', coalesce_streams=True,
                       resources=dict(metadata=dict(path=path.parent))).execute()
    else:
        done = subprocess.run([Path(sys.executable).with_name('nbdev-test'), str(path), '--save'], cwd=NBS.parent,
                              encoding='utf-8', capture_output=True,
                              env=os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', NETRC=os.devnull))
        if done.returncode: sys.exit(f'{path} failed:\n{done.stderr[-3000:]}')
        nbdev_clean(path) # removes a field that nbformat refuses
        nb = nbformat.read(path, 4)
    tidy(nb)
    nbformat.write(nb, path)
    nbdev_clean(path)


if __name__ == '__main__':
    for path in map(Path, sys.argv[1:] or TEACHING):
        print(f'== {path}', flush=True)
        run(path.resolve())
