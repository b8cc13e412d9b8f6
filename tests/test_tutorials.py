"""Every tutorial in a real JupyterLab, from its first cell to its last, its fits cut short."""
import pytest
import re
import shutil
import subprocess
import sys
from fastcore.nbio import read_nb
from pathlib import Path
from playwright.sync_api import expect

NBS = Path(__file__).parent.parent/'nbs'
TEACHING = sorted([*(NBS/'tutorials').glob('*.ipynb'), NBS/'explain'/'what_attention_shows.ipynb'])


@pytest.mark.slow
@pytest.mark.parametrize('notebook', TEACHING, ids=lambda p: p.stem)
def test_tutorial_runs_top_to_bottom(notebook, lab, page):
    shutil.copy(notebook, lab.folder)
    nb = lab.open(page, notebook.name)
    nb.js('for (const c of panel.content.widgets) if (c.model.type === "code") c.model.sharedModel.outputs = [];')
    nb.run(seconds=300)
    views = [i for i, outputs in enumerate(nb.outputs()) for o in outputs
             if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})]
    for i in set(views):
        nb.cell(i).scroll_into_view_if_needed()
        expect(nb.cell(i).locator('.jupyter-widgets, .mvlm-x').first).to_be_visible()


def test_mechanism_fits_in_15_lines():
    cells = [c.source for c in read_nb(NBS/'tutorials'/'4_write_a_mechanism.ipynb').cells if c.cell_type == 'code']
    mechanism, = [c for c in cells if 'memory_update(' in c]
    assert len(mechanism.splitlines()) <= 15


@pytest.mark.slow
def test_a_mechanism_in_a_file_is_a_command(tmp_path):
    cells = read_nb(NBS/'tutorials'/'4_write_a_mechanism.ipynb').cells
    imports, mechanism = [c.source for c in cells if c.cell_type == 'code'][:2]
    text = next(c.source for c in cells if 'leaky.py' in c.source)
    (tmp_path/'leaky.py').write_text(f'{imports}\n{mechanism}')
    fit, ablate = (line.split()[1:] for line in re.search('```sh\n(.*?)```', text, re.S)[1].splitlines())
    short = ['training.max_steps=2', 'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny',
             'training.batch_size=16']
    for words in ([*fit, *short], ablate):
        done = subprocess.run([sys.executable, '-m', 'memory_vlm', *words], cwd=tmp_path,
                              capture_output=True, encoding='utf-8')
        assert done.returncode == 0, done.stdout + done.stderr
    assert 'no ablation' in done.stdout and 'shuffle' in done.stdout
