"""The widgets in a real JupyterLab, driven by mouse and keyboard."""
import pytest
import re
from memory_vlm.viz.html import save_html, section
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000) # the machine may be busy

SETUP = """
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.widgets import AblationPanel, AttentionExplorer, ConfigEditor, FitDashboard, ImageSearch, MemoryAtlas
cfg = compose(['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
               'model.depth=2', 'model.embed_dim=64', 'model.num_heads=2'], config_name='quickstart')
learn = make_learner(cfg)
"""


def notebook(lab, page, name, *cells):
    "Open and run a notebook whose first cell makes a tiny learner."
    nb = lab.open(page, lab.write(f'{name}.ipynb', SETUP, *cells))
    nb.run()
    return nb


def field(cell, name, tag='input'):
    "Return the control of a widget with this label."
    return cell.locator('.widget-inline-hbox',
                        has=cell.page.locator('label', has_text=re.compile(f'^{name}$'))).locator(tag).first


def press(cell, name, key):
    "Focus a slider and press a key."
    handle = cell.locator('.widget-inline-hbox',
                          has=cell.page.locator('label', has_text=re.compile(f'^{name}$'))).locator('.noUi-handle')
    handle.focus()
    handle.press(key)


def image(cell, i=0): return cell.locator('.mvlm-image').nth(i)
def png(cell, i=0): return image(cell, i).locator('img').get_attribute('src')


def click_cell(frame, row, col, rows, cols):
    "Click the middle of a patch."
    box = frame.bounding_box()
    frame.click(position=dict(x=(col + 0.5) * box['width'] / cols, y=(row + 0.5) * box['height'] / rows))


def test_explorer_handles_mouse_and_keyboard_independently(lab, page, offline_page):
    nb = notebook(lab, page, 'explorer', 'one = AttentionExplorer(learn); one', 'two = AttentionExplorer(learn); two')
    one, two = nb.cell(1), nb.cell(2)
    before, drawn = two.inner_text(), png(one)

    press(one, 'layer', 'ArrowRight')
    expect(one).to_contain_text('token 0, layer 1, mean of heads')
    expect(image(one).locator('img')).not_to_have_attribute('src', drawn)
    field(one, 'token', 'select').select_option(label='token 3')
    field(one, 'head', 'select').select_option(label='head 1')
    expect(one).to_contain_text('token 3, layer 1, head 1')

    click_cell(image(one), 2, 5, 8, 8)
    expect(one).to_contain_text('Attention of the patch at row 2, column 5 to memory tokens')
    image(one).press('ArrowDown')
    expect(one).to_contain_text('Attention of the patch at row 3, column 5 to memory tokens')
    image(one).press('Escape')
    expect(one).to_contain_text('Click a patch')

    click_cell(image(one, 1), 0, 0, 3, 3) # CLS is the first cell
    expect(one).to_contain_text('CLS, layer 1, head 1')
    field(one, 'image').fill('4')
    field(one, 'image').press('Enter')
    expect(image(one)).to_have_attribute('title', re.compile('in image 4, layer 1'))
    box = field(one, 'caption')
    box.fill('a cat above a dog')
    box.press('Enter')
    expect(one).to_contain_text('cosine')

    assert nb.ask('[one.image, one.layer, one.head, one.token, one.patch, one.caption]') == [4, 1, 1, 'cls', -1,
            'a cat above a dog']
    assert nb.ask('[two.image, two.layer, two.head, two.token]') == [0, 0, 'mean', 0]
    assert two.inner_text() == before

    assert nb.ask("str(one.export_html('explorer.html'))") == 'explorer.html'
    offline_page.goto((lab.folder/'explorer.html').as_uri())
    canvas, seen = offline_page.locator('canvas').first, []
    for option in ('1', '0'):
        offline_page.locator('select, input[type=range]').first.evaluate(
            '(e, v) => { e.value = v; e.dispatchEvent(new Event("input", {bubbles: true})); '
            'e.dispatchEvent(new Event("change", {bubbles: true})); }', option)
        seen.append(canvas.evaluate('c => c.toDataURL()'))
    assert seen[0] != seen[1]


def test_fit_can_be_watched_and_stopped(lab, page, offline_page):
    cells = ['from fastai.callback.progress import ProgressCallback\ndash = FitDashboard(learn, steps=2); dash',
             'look = AttentionExplorer(learn); look', 'await dash.fit_cosine(400)', 'print(learn.train_iter)']
    nb = lab.open(page, lab.write('fit.ipynb', SETUP, *cells))
    nb.start()
    dash, look = nb.cell(1), nb.cell(2)
    stop = dash.get_by_role('button', name='Stop')
    expect(stop).to_be_enabled(timeout=60_000)
    expect(dash).to_contain_text(re.compile(r'step [1-9]\d* of'), timeout=30_000)
    png(look)
    press(look, 'layer', 'ArrowLeft') # while it trains
    expect(look).to_contain_text(re.compile('layer 0, mean of heads|is training'))
    stop.click()
    nb.finish()
    expect(dash).to_contain_text('Stopped after')
    expect(dash.get_by_role('button', name='Stop')).to_be_disabled()
    steps = int(nb.outputs()[4][0]['text'])
    assert 0 < steps < 400 * nb.ask('len(learn.dls.train)') and nb.ask('dash.redraws') >= steps // 2
    assert nb.ask('dash.checkpoint is not None and dash.checkpoint.exists()')
    assert len(nb.outputs()[1]) == 1 and len(nb.outputs()[3]) <= 2 # redrawn in place
    svg = dash.locator('svg')
    assert svg.count() >= 5 and 'not measured yet' not in svg.first.text_content()
    press(look, 'layer', 'ArrowRight')
    expect(look).to_contain_text('layer 1, mean of heads')
    nb.ask("str(dash.export_html('fit.html'))")
    offline_page.goto((lab.folder/'fit.html').as_uri())
    expect(offline_page.locator('main')).to_contain_text('Training curves')


def test_plain_fit_reports_that_its_button_is_disabled(lab, page):
    nb = lab.open(page,
                  lab.write('plain.ipynb', SETUP, 'dash = FitDashboard(learn, every=0.5); dash',
                            'learn.fit_cosine(100)', 'print(learn.interrupted, learn.train_iter)'))
    nb.start()
    dash = nb.cell(1)
    expect(dash).to_contain_text('clicks are handled only after it ends', timeout=60_000)
    expect(dash.get_by_role('button', name='Stop')).to_be_disabled()
    expect(dash).to_contain_text(re.compile(r'step [1-9]\d* of'))
    nb.js("app.commands.execute('notebook:interrupt-kernel');")
    nb.finish()
    expect(dash).to_contain_text('Stopped after')
    assert nb.outputs()[3][0]['text'].startswith('True')


def test_config_editor_checks_each_keystroke(lab, page, offline_page):
    nb = notebook(lab, page, 'editor', 'editor = ConfigEditor(cfg); editor', 'other = ConfigEditor(); other')
    cell, other = nb.cell(1), nb.cell(2)
    search = cell.get_by_placeholder('Search keys and help')
    def rate(): return cell.locator('.mvlm-row', has_text=re.compile(r'training\.learning_rate')).locator('input').first
    def only(words):
        search.fill(words)
        search.press('Enter')
    only('learning_rate')
    expect(cell.locator('.mvlm-row')).not_to_have_count(0)
    rate().fill('fast')
    rate().press('Tab')
    expect(cell.get_by_role('alert')).to_contain_text("training.learning_rate")
    rate().fill('0.003')
    rate().press('Tab')
    expect(cell.locator('.mvlm-side pre')).to_contain_text('training.learning_rate=0.003')
    expect(cell.locator('.mvlm-side')).to_contain_text('Parameters')
    assert nb.ask('editor.cfg.training.learning_rate') == 0.003 and nb.ask('other.cfg.training.learning_rate') == 5e-4
    expect(other.locator('.mvlm-side pre')).not_to_contain_text('0.003')
    cell.get_by_role('button', name='Save').click()
    expect(cell).to_contain_text('Saved to config.yaml')
    cell.get_by_role('button', name='Undo all').click()
    expect(cell.locator('.mvlm-side pre')).not_to_contain_text('0.003')
    cell.get_by_role('button', name='Load').click()
    expect(cell.locator('.mvlm-side pre')).to_contain_text('0.003')
    assert 'learning_rate: 0.003' in (lab.folder/'config.yaml').read_text()
    nb.ask("str(editor.export_html('editor.html'))")
    offline_page.goto((lab.folder/'editor.html').as_uri())
    expect(offline_page.locator('main')).to_contain_text('training.learning_rate')


def test_atlas_ablation_and_search(lab, page, offline_page):
    nb = notebook(lab, page, 'three', 'atlas = MemoryAtlas(learn); atlas', 'panel = AblationPanel(learn); panel',
                  'search = ImageSearch(learn); search')
    atlas, panel, search = (nb.cell(i) for i in (1, 2, 3))
    def tokens(): return re.findall(r'token (\d)', ' '.join(atlas.locator('b').all_inner_texts()))
    assert tokens() == list('01234567')
    select = field(atlas, 'order', 'select')
    select.select_option(index=1)
    nb.ask('0') # wait for the kernel
    sort = '__import__("memory_vlm.widgets.atlas", fromlist=["x"])._sorted_cards'
    shown = nb.ask(f'[c.token for c in {sort}(atlas.cards, atlas.order)]')
    assert sorted(tokens()) == list('01234567') and tokens() == [str(t) for t in shown]
    press(atlas, 'layer', 'ArrowLeft')
    expect(atlas).to_contain_text('Layer 0')

    panel.get_by_role('button', name='2', exact=True).click()
    expect(panel).to_contain_text('1 of 8 off')
    panel.get_by_role('button', name='all off').click()
    expect(panel).to_contain_text('8 of 8 off')
    assert nb.ask('panel.off') == list(range(8))
    changed = nb.ask("[panel.before['i2t/R@1'], panel.after['i2t/R@1']]")
    expect(panel.locator('table').first).to_contain_text(f'{changed[1]:.1%}')

    box = field(search, 'caption')
    box.fill('a bird left of a car')
    box.press('Enter')
    expect(search.locator('img')).to_have_count(12)
    first = search.locator('img').nth(1).get_attribute('src')
    field(search, 'map of', 'select').select_option(label='token 5')
    expect(search).to_contain_text('the attention of memory token 5')
    assert search.locator('img').nth(1).get_attribute('src') != first

    for name, words in dict(atlas='token 7', panel='Ablation of memory tokens', search='a bird left of a car').items():
        nb.ask(f"str({name}.export_html('pages/{name}.html'))")
        offline_page.goto((lab.folder/'pages'/f'{name}.html').as_uri())
        expect(offline_page.locator('main')).to_contain_text(words)
        assert offline_page.locator('canvas, img').count()


BAD = {
    "AttentionExplorer(make_learner(compose(['model/memory=off'], config_name='quickstart')))": 'no memory tokens',
    'AttentionExplorer(learn).set_trait("layer", 9)': 'layer=9',
    'AttentionExplorer(learn).set_trait("token", 99)': 'token=99',
    'AttentionExplorer(learn, data=[])': 'the data set is empty',
    'AblationPanel(learn).set_trait("off", (9,))': 'There is no memory token 9',
    'MemoryAtlas(learn, data=[])': 'the data set is empty',
}


def test_bad_input_shows_one_message(lab, page):
    code = f"""
messages = {{}}
for mistake in {list(BAD)!r}:
    try: messages[mistake] = eval(mistake).message
    except ValueError as e: messages[mistake] = str(e)"""
    nb = notebook(lab, page, 'bad', code)
    messages = nb.ask('messages')
    for mistake, words in BAD.items(): assert words in messages[mistake], (mistake, messages[mistake])


def test_pages_of_runs_fit_a_phone(offline_page, tmp_path):
    row = '<tr><td><code>training.data.persistent_workers</code></td><td><code>{"warmup_epochs": 1.6}</code></td></tr>'
    page = save_html(tmp_path/'page.html', 'run', 'lead', section('Configuration', f'<table>{row}</table>'), 'footer')
    offline_page.set_viewport_size(dict(width=390, height=800))
    offline_page.goto(page.as_uri())
    assert offline_page.evaluate('document.documentElement.scrollWidth') == 390
