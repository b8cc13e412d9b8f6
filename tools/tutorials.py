"""Run the tutorials in full and keep what they show: `python tools/tutorials.py [NOTEBOOK ...]`.

Most train for minutes. A live widget is only a name once its kernel is gone, so the notebooks show a snapshot beside
each, and the widget's own output is left out; so are progress bars and warnings. Large images keep 256 colors."""
import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from PIL import Image

NBS = Path(__file__).parent.parent/'nbs'
TEACHING = [*sorted((NBS/'tutorials').glob('*.ipynb')), *(NBS/'explain'/f'{n}.ipynb' for n in ('configuration', 'what_attention_shows'))]
WIDGET = 'application/vnd.jupyter.widget-view+json'


def worth_keeping(output):
    "Whether a reader without a kernel gains by it."
    if output.output_type == 'stream': return output.name == 'stdout'
    data = output.get('data', {})
    return output.output_type == 'error' or bool(data) and WIDGET not in data and 'progress' not in str(data.get('text/html', ''))


def shrink(data):
    "Store a large image with 256 colors."
    if len(data.get('image/png', '')) < 100_000: return
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(data['image/png']))).quantize(256, method=Image.Quantize.FASTOCTREE).save(small, 'PNG', optimize=True)
    data['image/png'] = base64.b64encode(small.getvalue()).decode()


def run(path):
    "Run a notebook where it stands, and write it with its outputs."
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=1800, kernel_name='python3', coalesce_streams=True,
                   resources=dict(metadata=dict(path=path.parent))).execute()
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.outputs if worth_keeping(o)]
        for o in cell.get('outputs', []): shrink(o.get('data', {}))
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, path)
    nbdev_clean(path)


if __name__ == '__main__':
    for path in map(Path, sys.argv[1:] or TEACHING):
        print(f'== {path}', flush=True)
        run(path.resolve())
