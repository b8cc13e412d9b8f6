"""The widgets in a real JupyterLab, driven by mouse and keyboard."""
import lab as labs
import os
import pytest
import re
import subprocess
import sys
from io import BytesIO
from memory_vlm.viz.html import save_html, section
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import expect
from xml.etree import ElementTree

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000) # the machine may be busy

SETUP = """
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.widgets import AblationPanel, AttentionExplorer, ConfigEditor, FitDashboard, ImageSearch, MemoryAtlas
from memory_vlm.widgets import EmbeddingMap
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


def click_cell(frame, row, col, rows, cols):
    "Click the middle of a patch."
    box = frame.bounding_box()
    frame.click(position=dict(x=(col + 0.5) * box['width'] / cols, y=(row + 0.5) * box['height'] / rows))


def arrives(nb, expression, value, tries=40):
    "Wait until an expression in the kernel has a value: the browser draws before the kernel hears of it."
    for _ in range(tries):
        if (now := nb.ask(expression)) == value: return
        nb.page.wait_for_timeout(250)
    assert now == value


def explorer(cell): return cell.locator('.mvlm-x')
def choose(cell, name, label): explorer(cell).locator(f'.choice.{name} select').select_option(label=label)
def photo(cell): return explorer(cell).locator('.frame canvas').first


def test_explorer_handles_mouse_and_keyboard_independently(lab, page, offline_page):
    nb = notebook(lab, page, 'explorer', 'one = AttentionExplorer(learn); one', 'two = AttentionExplorer(learn); two')
    one, two = nb.cell(1), nb.cell(2)
    expect(one).to_contain_text('rank')
    expect(two).to_contain_text('rank')
    before, drawn = two.inner_text(), photo(one).evaluate('c => c.toDataURL()')
    choose(one, 'layer', '1')
    expect(one).to_contain_text('token 0, layer 1, mean of heads')
    choose(one, 'token', '3')
    choose(one, 'head', '1')
    expect(one).to_contain_text('token 3, layer 1, head 1')
    assert photo(one).evaluate('c => c.toDataURL()') != drawn

    click_cell(photo(one), 2, 5, 6, 6)
    expect(one).to_contain_text('Attention of memory tokens to the patch at row 2, column 5')
    expect(one.locator('.figure .value')).to_contain_text('row 2, column 5')
    expect(one.locator('.figure .value')).to_contain_text('times uniform')
    photo(one).press('ArrowDown')
    expect(one).to_contain_text('Attention of memory tokens to the patch at row 3, column 5')
    for key in 'xabm': photo(one).press(key) # JupyterLab would cut, insert and convert cells
    expect(one.locator('.choice.show select')).to_have_value('who reads the token')
    assert nb.page.locator('.jp-Notebook .jp-Cell').count() == 3
    for key in ('Escape', 'j', '['): photo(one).press(key)
    expect(one).to_contain_text('layer 0, head 1')
    expect(one).to_contain_text('Click a patch')

    one.locator('.tokens').get_by_role('option', name='CLS').click()
    expect(one).to_contain_text('Attention to CLS is not recorded')
    choose(one, 'show', 'what the token reads')
    expect(one).to_contain_text('CLS, layer 0, head 1')
    number = one.locator('nav input')
    number.fill('9999')
    number.press('Enter')
    expect(one.get_by_role('status').first).to_contain_text('There is no image 9999; choose 0 to 21.')
    expect(one.locator('nav')).to_contain_text('of 22')
    number.fill('5')
    number.press('Enter')
    expect(photo(one)).to_have_attribute('aria-label', re.compile('image 5: CLS, layer 0'))
    box = one.get_by_label('caption', exact=True)
    box.fill('a cat above a dog')
    box.press('Enter')
    expect(one).to_contain_text('cosine')

    one.locator('.tokens').get_by_role('option', name='token 6').click(modifiers=['Shift']) # pins a second token
    expect(one.locator('.figure p')).to_contain_text(re.compile(r'CLS minus token 6: cosine of the two maps -?\d'))
    arrives(nb, '[one.pin, one.show]', [6, 'minus_pin'])
    photo(one).press('Escape')
    one.locator('.tokens').get_by_role('option', name='token 6, ').click(modifiers=['Shift'])
    expect(one.locator('.choice.show select')).to_have_value('what the token reads')
    with nb.page.expect_download() as saved: one.get_by_role('button', name='Save the image and its map as SVG').click()
    svg = ElementTree.parse(saved.value.path()).getroot()
    assert svg.findall('.//{*}rect') and 'CLS, layer 0' in ''.join(svg.itertext())

    arrives(nb, 'one.selection', dict(image=5, layer=0, head=1, token='cls', patch=-1))
    assert nb.ask('one.caption') == 'a cat above a dog' and nb.ask('two.image') == nb.ask('two.main.most_telling()') > 0
    assert two.inner_text() == before

    assert nb.ask("str(one.export_html('explorer.html', images=[0, 5]))") == 'explorer.html'
    offline_page.goto((lab.folder/'explorer.html').as_uri())
    main = offline_page.locator('main')
    expect(main).to_contain_text('CLS, layer 0, head 1') # the selection is kept
    expect(main.locator('.words')).to_contain_text('cosine')
    seen = [main.locator('canvas').first.evaluate('c => c.toDataURL()')]
    choose(main, 'layer', '1')
    expect(main).to_contain_text('CLS, layer 1, head 1')
    seen.append(main.locator('canvas').first.evaluate('c => c.toDataURL()'))
    assert seen[0] != seen[1]
    offline_page.reload() # the state stands in the link
    expect(main).to_contain_text('CLS, layer 1, head 1')
    main.locator('.thumbs button').last.click()
    expect(main.locator('canvas').first).to_have_attribute('aria-label', re.compile('^image 5: '))
    main.get_by_role('button', name='Copy the selection as Python').click()
    expect(main.get_by_role('status').first).to_contain_text('explorer.state = dict(image=5, layer=1, head=1')
    with offline_page.expect_download() as saved: main.get_by_role('button', name='as CSV').click()
    assert saved.value.suggested_filename == 'image5_layer1_1_cls.csv'


WIDE = """
import torch
from memory_vlm.vision import MemoryViT, tiny_vit
torch.manual_seed(0)
wide = tiny_vit(img_size=224, patch_size=16, depth=12, num_heads=4, num_memory_tokens=64)
plain = tiny_vit(img_size=224, patch_size=16, depth=12, num_heads=4)
explorer = AttentionExplorer(wide, data=learn); explorer
"""


def test_explorer_of_64_tokens_is_legible_and_is_kept(lab, page, chromium):
    page.set_viewport_size(dict(width=1400, height=900))
    nb = notebook(lab, page, 'legible', WIDE, 'explorer.keep()',
                  'twin = AttentionExplorer(wide, data=learn, other=plain); twin')
    live, twin = nb.cell(1), nb.cell(3)
    expect(live).to_contain_text('times uniform')
    expect(live.locator('.tokens').get_by_role('option')).to_have_count(65)
    expect(live.locator('.words label')).to_be_hidden() # there is no text tower
    size = lambda where: where.bounding_box()
    assert size(photo(live))['width'] >= 480
    assert all(b['width'] >= 56 <= b['height'] for b in map(size, live.locator('.tokens canvas').all()[:3]))
    assert live.evaluate('c => c.querySelector(".stage").lastElementChild.getBoundingClientRect().right') > 1300
    took = photo(live).evaluate("""c => { const b = c.getBoundingClientRect(), start = performance.now();
        for (let i = 0; i < 100; i++)
            c.dispatchEvent(new MouseEvent("mousemove", {clientX: b.left + i * 4, clientY: b.top + i}));
        return (performance.now() - start) / 100; }""")
    print(f"a hover takes {took:.2f} ms")
    expect(twin).to_contain_text('model − other')
    expect(twin.locator('.figure p')).to_contain_text(['CLS, layer 10', 'CLS, layer 10', 'The difference is largest'])
    page.set_viewport_size(dict(width=700, height=900))
    top, strip = size(photo(live)), size(live.locator('.tokens'))
    assert strip['y'] + strip['height'] - top['y'] <= 650 and strip['width'] <= 700

    nb.js("await app.commands.execute('docmanager:save');")
    path = lab.folder/'legible.ipynb'
    outputs = nb.outputs()[2]
    assert len([o for o in outputs if 'text/html' in o['data']]) == 1
    assert len(outputs[0]['data']['text/html']) < 500_000
    nb.js("await panel.sessionContext.session.kernel.restart();")
    page.reload()
    kept = nb.cell(2).frame_locator('iframe')
    expect(kept.locator('body')).to_contain_text('token 0, layer 10')
    choose(kept, 'layer', '3')
    expect(kept.locator('body')).to_contain_text('token 0, layer 3')
    expect(nb.cell(2).locator('.jp-RenderedHTML > img, .jp-RenderedHTMLCommon > img').first).to_be_hidden()

    (lab.folder/'legible.html').write_text(HTMLExporter().from_filename(str(path))[0], encoding='utf-8')
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto((lab.folder/'legible.html').as_uri(), wait_until='domcontentloaded')
    kept = page.frame_locator('iframe')
    choose(kept, 'token', '5')
    expect(kept.locator('body')).to_contain_text('token 5, layer 10')
    context.close()


def test_fit_can_be_watched_and_stopped(lab, page, offline_page):
    cells = ['from fastai.callback.progress import ProgressCallback\ndash = FitDashboard(learn, steps=2); dash',
             'look = AttentionExplorer(learn); look', 'await dash.fit_cosine(400)', 'print(learn.train_iter)']
    nb = lab.open(page, lab.write('fit.ipynb', SETUP, *cells))
    nb.start()
    dash, look = nb.cell(1), nb.cell(2)
    stop = dash.get_by_role('button', name='Stop')
    expect(stop).to_be_enabled(timeout=60_000)
    expect(dash).to_contain_text(re.compile(r'step [1-9]\d* of'), timeout=30_000)
    expect(look.locator('.mvlm-x')).to_have_attribute('aria-busy', 'false')
    choose(look, 'layer', '1') # while it trains
    expect(look).to_contain_text(re.compile('layer 1, mean of heads|is training'))
    stop.click()
    nb.finish()
    expect(dash).to_contain_text('Stopped after')
    expect(dash.get_by_role('button', name='Stop')).to_be_disabled()
    steps = int(nb.outputs()[4][0]['text'])
    assert 0 < steps < 400 * nb.ask('len(learn.dls.train)') and nb.ask('dash.redraws') >= steps // 2
    assert nb.ask('dash.checkpoint is not None and dash.checkpoint.exists()')
    assert len(nb.outputs()[1]) == 2 and len(nb.outputs()[3]) <= 2 # redrawn in place, with an image
    svg = dash.locator('svg')
    assert svg.count() >= 5 and 'not measured yet' not in svg.first.text_content()
    choose(look, 'layer', '0')
    expect(look).to_contain_text('layer 0, mean of heads')
    nb.ask("str(dash.export_html('fit.html'))")
    offline_page.goto((lab.folder/'fit.html').as_uri())
    expect(offline_page.locator('main')).to_contain_text('Training curves')


STILL = '[class$="-still"]'

def test_panels_leave_images_in_a_saved_notebook(lab, page, chromium):
    "Hidden beside the panel, shown after a restart and in nbconvert."
    nb = notebook(lab, page, 'still_images', 'dash = FitDashboard(learn); dash', 'one = AttentionExplorer(learn); one',
                  'panel = AblationPanel(learn); panel', 'ConfigEditor(cfg)', 'learn.fit_cosine(1)')
    choose(nb.cell(2), 'token', '3')
    panel, switch = nb.cell(3), nb.cell(3).get_by_role('button', name='2', exact=True)
    switch.click(timeout=60_000)
    expect(panel).to_contain_text('1 of 8 off')
    cells = {1: 'Training of', 2: r'Image \d+, layer 0, mean of heads, token 3', 3: 'Attention of CLS with ablated'}
    for i, words in cells.items():
        expect(nb.cell(i).locator(f'{STILL} img')).to_have_attribute('alt', re.compile(words))
    expect(nb.cell(1).locator(STILL)).to_contain_text('FitDashboard, as it was')
    expect(nb.cell(4).locator(STILL)).to_have_count(1)
    assert not page.locator(f'{STILL}:visible').count()
    page.wait_for_timeout(3000) # the last images are drawn
    nb.js("await app.commands.execute('docmanager:save');")
    size = (lab.folder/'still_images.ipynb').stat().st_size
    assert size < 500_000, size
    nb.js("await panel.sessionContext.session.kernel.restart();")
    page.reload()
    (lab.folder/'still_images.html').write_text(HTMLExporter().from_filename(str(lab.folder/'still_images.ipynb'))[0],
                                            encoding='utf-8')
    context = chromium.new_context(offline=True)
    converted = context.new_page()
    converted.goto((lab.folder/'still_images.html').as_uri(), wait_until='domcontentloaded')
    for where in (page, converted):
        expect(where.locator(f'{STILL}:visible')).to_have_count(4)
        expect(where.locator(STILL).nth(3)).to_contain_text('python train.py')
        shown = where.locator(f'{STILL} img').evaluate_all('all => all.map((i) => [i.alt, i.naturalWidth])')
        assert all(re.search(words, alt) and width > 200 for words, (alt, width) in zip(cells.values(), shown)), shown
    context.close()


def test_work_of_the_explorer_can_be_stopped(lab, page):
    slow = """
import time
def survey(num=None, step=None):
    for i in range(1000):
        time.sleep(0.1)
        step(i, 1000)
one = AttentionExplorer(learn)
one.main.survey = survey
one"""
    nb = notebook(lab, page, 'stop', slow)
    one = explorer(nb.cell(1))
    stop, order = one.get_by_role('button', name='Stop'), one.locator('.choice.gallery select')
    expect(one).to_contain_text('times uniform')
    for begin in (lambda: order.select_option(label='hardest'),
                  lambda: one.get_by_role('button', name='Mask this token').click()):
        expect(stop).to_be_hidden()
        begin()
        stop.click()
        expect(one.get_by_role('status').first).to_have_text('Stopped.')
        expect(one.locator('progress').first).to_be_hidden()
    expect(order).to_have_value('index')
    order.select_option(label='hardest') # it can be asked for again
    expect(stop).to_be_visible()
    assert nb.ask('one.problem') is None


def test_slider_of_a_fit_stays_at_the_latest_maps(lab, page):
    nb = notebook(lab, page, 'slider', 'dash = FitDashboard(learn, steps=1); dash', 'learn.fit_cosine(1)',
                  'learn.fit_cosine(4)')
    dash, steps = nb.cell(1), nb.ask('learn.train_iter')
    assert steps > 40 # more maps than are kept
    page.wait_for_timeout(1000) # an answer of the browser would come now
    assert nb.ask('[dash.when.value, dash.when.max, dash.when_text.value]') == [39, 39, f'step {steps} (latest)']
    latest = dash.locator('img').last.get_attribute('src')
    press(dash, 'maps of this fit', 'Home')
    expect(dash.get_by_text('step 0', exact=True)).to_be_visible()
    expect(dash.locator('img').last).not_to_have_attribute('src', latest)


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
    rate().fill('0.005')
    rate().press('Tab')
    expect(cell.locator('.mvlm-side pre')).to_contain_text('training.learning_rate=0.005')
    expect(cell.locator('.mvlm-side')).to_contain_text('Parameters')
    assert nb.ask('editor.cfg.training.learning_rate') == 0.005 and nb.ask('other.cfg.training.learning_rate') == 5e-4
    expect(other.locator('.mvlm-side pre')).not_to_contain_text('0.005')
    cell.get_by_role('button', name='Save').click()
    expect(cell).to_contain_text('Saved to config.yaml')
    cell.get_by_role('button', name='Undo all').click()
    expect(cell.locator('.mvlm-side pre')).not_to_contain_text('0.005')
    cell.get_by_role('button', name='Load').click()
    expect(cell.locator('.mvlm-side pre')).to_contain_text('0.005')
    assert 'learning_rate: 0.005' in (lab.folder/'config.yaml').read_text()
    nb.ask("str(editor.export_html('editor.html'))")
    counted = 'len(__import__("ipywidgets").widgets.widget._instances)'
    before = nb.ask(counted)
    nb.run() # closes the widgets of the earlier run
    assert nb.ask(counted) <= before + 2
    offline_page.goto((lab.folder/'editor.html').as_uri())
    expect(offline_page.locator('main')).to_contain_text('training.learning_rate')


def test_atlas_ablation_and_search(lab, page, offline_page):
    nb = notebook(lab, page, 'three', 'atlas = MemoryAtlas(learn); atlas', 'panel = AblationPanel(learn); panel',
                  'search = ImageSearch(learn); search')
    atlas, panel, search = (nb.cell(i) for i in (1, 2, 3))
    def tokens(): return re.findall(r'token (\d)', ' '.join(atlas.locator('b').all_inner_texts()))
    expect(atlas.locator('b')).to_have_count(8) # encoded in the background
    assert tokens() == list('01234567')
    select = field(atlas, 'order', 'select')
    select.select_option(index=1)
    nb.ask('0') # wait for the kernel
    sort = '__import__("memory_vlm.widgets.atlas", fromlist=["x"])._sorted_cards'
    shown = nb.ask(f'[c.token for c in {sort}(atlas.cards, atlas.order)]')
    assert sorted(tokens()) == list('01234567') and tokens() == [str(t) for t in shown]
    press(atlas, 'layer', 'ArrowLeft')
    expect(atlas).to_contain_text('Layer 0')

    expect(panel).to_contain_text('Not measured yet')
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


def test_gallery_own_images_and_embedding_map(lab, page, offline_page):
    nb = notebook(lab, page, 'map', 'one = AttentionExplorer(learn); one',
                  'plot = EmbeddingMap(learn, other=learn, explorer=one); plot')
    one, plot = nb.cell(1), nb.cell(2)
    ranks, cosines = (nb.ask(f"one.main.survey()['{name}'].tolist()") for name in ('rank', 'cosine'))
    easiest = min(range(22), key=lambda i: (ranks[i], -cosines[i]))
    choose(one, 'gallery', 'easiest')
    expect(one.locator('.thumbs button').first).to_have_attribute('data-index', str(easiest), timeout=60_000)
    expect(one.locator('.thumbs button').first).to_have_attribute('title', re.compile(r'^\d+: '))
    expect(one.locator('.message')).to_have_text('')

    file = BytesIO()
    Image.new('RGB', (90, 70), '#c8372d').save(file, 'PNG')
    upload = dict(name='red.png', mimeType='image/png', buffer=file.getvalue())
    one.locator('input[type=file]').set_input_files(upload)
    expect(one.locator('nav')).to_contain_text('of 23')
    expect(photo(one)).to_have_attribute('aria-label', re.compile('^image 22: '))
    expect(one.locator('.thumbs button').first).to_have_attribute('data-index', '22') # first in every order
    explorer(one).get_by_role('button', name='Mask this token').click()
    expect(one.get_by_role('status').first).to_contain_text('(masked), the cosine', timeout=60_000)

    canvas, pairs = plot.locator('canvas.plot'), plot.locator('.pair')
    expect(pairs).to_have_count(8)
    expect(pairs.first).to_contain_text(f'rank {max(ranks)}; twin: {max(ranks)}')
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = canvas.bounding_box()
    page.mouse.move(box['x'] + 2, box['y'] + 2)
    page.mouse.down()
    for x, y in ((1, 0), (1, 1), (0, 1)): # around all points
        page.mouse.move(box['x'] + 2 + x * (box['width'] - 4), box['y'] + 2 + y * (box['height'] - 4), steps=4)
    page.mouse.up()
    expect(plot).to_contain_text('22 of 22 images selected')
    arrives(nb, 'sorted(plot.selected)', list(range(22)))
    canvas.press('Escape')
    for key in ('ArrowRight', 'ArrowRight', 'Enter'): canvas.press(key) # the second image
    expect(photo(one)).to_have_attribute('aria-label', re.compile('^image 1: '))
    nb.ask("str(plot.export_html('map.html'))")
    offline_page.goto((lab.folder/'map.html').as_uri())
    expect(offline_page.locator('.pair')).to_have_count(8)
    expect(offline_page.locator('.pair img').first).to_have_attribute('src', re.compile('^data:image'))


BAD = {
    "AblationPanel(make_learner(compose(['model/memory=off'], config_name='quickstart')))":
        "ablate(model, data, part='cls')",
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


MARIMO = """
import marimo
app = marimo.App()

@app.cell
def _():
    import numpy as np
    from memory_vlm.vision import tiny_vit
    from memory_vlm.widgets import AttentionExplorer
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    explorer = AttentionExplorer(tiny_vit(num_memory_tokens=3), [image, image[::-1].copy()])
    explorer
    return

if __name__ == '__main__': app.run()
"""


def test_explorer_in_marimo(chromium, tmp_path):
    (tmp_path/'app.py').write_text(MARIMO, encoding='utf-8')
    port = labs.free_port()
    command = [sys.executable, '-m', 'marimo', 'run', 'app.py', '--headless', '--no-token', f'--port={port}']
    server = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, env=os.environ | dict(HOME=str(tmp_path)))
    page = chromium.new_page(viewport=dict(width=1200, height=900))
    try:
        for _ in range(120):
            try: page.goto(f'http://127.0.0.1:{port}'); break
            except Exception: page.wait_for_timeout(500)
        explorer = page.locator('.mvlm-x')
        expect(explorer).to_contain_text('token 0, layer 1, mean of heads', timeout=120_000)
        explorer.locator('.choice.layer select').select_option(label='0')
        explorer.locator('.tokens').get_by_role('option', name='token 2').click()
        expect(explorer).to_contain_text('token 2, layer 0, mean of heads')
        canvas = explorer.locator('.figure canvas').first
        canvas.press('j') # another image comes from the kernel
        expect(canvas).to_have_attribute('aria-label', re.compile('^image 1: token 2'))
    finally:
        page.close()
        server.terminate()
        server.wait(30)
