import access
import pytest
from lab import Notebook
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)
SETUP = """
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.widgets import *
cfg = compose(['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
               'model.depth=2', 'model.embed_dim=64', 'model.num_heads=2'], config_name='quickstart')
learn = make_learner(cfg)
"""
PANELS = dict(fit='dash = FitDashboard(learn, steps=5); dash', explorer='one = AttentionExplorer(learn); one',
              atlas='atlas = MemoryAtlas(learn); atlas', ablation='panel = AblationPanel(learn); panel',
              search='search = ImageSearch(learn); search', map='plot = EmbeddingMap(learn); plot',
              config='editor = ConfigEditor(cfg); editor')


@pytest.fixture(scope='module')
def panels(lab, chromium):
    "A notebook with all panels."
    page = chromium.new_page(viewport=dict(width=1200, height=900))
    nb = lab.open(page, lab.write('panels.ipynb', SETUP, *PANELS.values(), 'learn.fit_cosine(4)\npanel.measure(); None'))
    nb.run(300)
    page.wait_for_timeout(3000)
    yield nb
    page.close()


@pytest.mark.parametrize('theme', ['Light', 'Dark'])
def test_text_of_panels(panels, theme):
    panels.js("await app.commands.execute('apputils:change-theme', {theme: arg});", f'JupyterLab {theme}')
    panels.page.wait_for_timeout(1500)
    for i, name in enumerate(PANELS, 1):
        bad, n = access.pale(panels.cell(i).locator('.jp-OutputArea'))
        print(theme, name, n)
        seen=set()
        for b in bad:
            k=(b['ratio'],b['color'],b['below'])
            if k not in seen: print('   ', b); seen.add(k)
        sel=f'.jp-Notebook .jp-Cell:nth-of-type({i+1}) .jp-OutputArea-output'
    print(access.nameless(panels.page, '.jp-OutputArea-output'))
