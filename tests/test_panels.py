"""Every panel in a browser: legible, named, usable by keyboard, and linked to the explorer.

Defects that users saw in these panels, and the test that looks for each (here unless a file is named):

| defect | test |
|---|---|
| 1 a saved notebook shows nothing | test_widgets: panels_leave_images, of_64_tokens, explorer_in_marimo |
| 2 64 tokens are too small to read | test_widgets: of_64_tokens_is_legible_and_is_kept |
| 3 one outlier makes all other maps dark and hides the image | an_outlier_hides_neither_the_maps_nor_the_image |
| 4 "reads" of kv memory keeps old maps under the wrong label | kv_memory_offers_only_what_it_has |
| 5 keys reach JupyterLab | test_widgets: handles_mouse_and_keyboard |
| 6 the ablation's verdict stands below a raw table | ablation_begins_with_its_verdict |
| 7 models without memory, and runs as the other model | test_widgets: of_64_tokens; test_loaded: every_form |
| 8 the report says nothing of memory, and is wider than a phone | report_of_a_run |
| 9 constructors block | panels_compute_in_the_background |
| 10 no live widget in the documentation | test_docs: start_page_shows_a_live_explorer |
| 11 the summary of the configuration scrolls away | summary_of_the_configuration_stays |
| 12 the explorer is too high at 700 pixels | test_widgets: of_64_tokens_is_legible_and_is_kept |
| 13 labels of training curves run together at 20,000 steps | curves_of_20000_steps |
| 14 points of a study with one seed stand on the frame | study_of_one_seed |
| 15 the number of images is not shown, 9999 becomes 511 | test_widgets: handles_mouse_and_keyboard |
| 16 exports and snapshots lose the selection | test_widgets: handles_mouse_and_keyboard; 05_explorer.ipynb |
| 17 negative bars grow to the right | negative_bars_grow_to_the_left |
| 18 pale text, Type 3 fonts | text_of_panels_is_legible, text_of_pages_is_legible, pdf_has_truetype_fonts |
| 19 `from memory_vlm.widgets import *` imports nothing | the first cell of `panels` |
| 20 FitDashboard of a finished run, long tracebacks | a_user_error_is_one_line |
| 21 a warning in the first cell | importing_prints_nothing |
| 22 repeated cells leak widgets | test_widgets: config_editor_checks_each_keystroke |
| 23 num_heads=7 suggests another embed_dim only | summary_of_the_configuration_stays |
| 24 the estimated time is that of one step | 06_preflight.ipynb (median of several steps) |
| 25 open_trained() prints the module tree | a_user_error_is_one_line |
"""
import access
import base64
import json
import numpy as np
import pandas as pd
import pytest
import re
import torch
from memory_vlm.attention import capture
from memory_vlm.study import study_plot
from memory_vlm.vision import tiny_vit
from memory_vlm.viz.plots import training_curves
from memory_vlm.viz.style import to_svg
from memory_vlm.widgets import AttentionExplorer
from memory_vlm.widgets.base import image_features
from memory_vlm.widgets.html import image_data, maps_page
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000) # the machine may be busy

SETUP = """
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.run import fit
from memory_vlm.training.run_dir import open_trained
from memory_vlm.widgets import *
words = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
         'model.depth=2', 'model.embed_dim=64', 'model.num_heads=2', 'training.logging.tensorboard=false']
cfg = compose(words, config_name='quickstart')
learn = make_learner(cfg)
"""
PANELS = dict(fit='dash = FitDashboard(learn, steps=5); dash', explorer='one = AttentionExplorer(learn); one',
              atlas='atlas = MemoryAtlas(learn, explorer=one); atlas', ablation='panel = AblationPanel(learn); panel',
              search='search = ImageSearch(learn, explorer=one); search',
              map='plot = EmbeddingMap(learn, explorer=one); plot', config='editor = ConfigEditor(cfg); editor')
LATER = ("learn.fit_cosine(4)\npanel.measure()\nbackground = [type(p).__name__ for p in (atlas, panel, search, plot) "
         "if p._thread is None]")


@pytest.fixture(scope='module')
def panels(lab, chromium):
    "A notebook with all panels after a fit."
    page, failures = chromium.new_page(viewport=dict(width=1200, height=900)), []
    page.on('pageerror', lambda e: failures.append(str(e)))
    page.set_default_timeout(15_000)
    nb = lab.open(page, lab.write('panels.ipynb', SETUP, *PANELS.values(), LATER))
    nb.run(300)
    for name, words in dict(atlas='token 7', search='Best of 22', map='Hardest pairs').items():
        expect(cell(nb, name)).to_contain_text(words, timeout=60_000)
    assert not page.locator('.jupyter-widgets-error-widget').count()
    problems = '[str(p.problem) for p in (atlas, panel, search, plot, dash) if p.problem]'
    assert nb.ask(problems) == [] # a fit ran beside them
    yield nb
    page.close()
    assert not failures, failures


def cell(nb, name): return nb.cell(1 + list(PANELS).index(name)).locator('.jp-OutputArea-output').first
def theme(nb, name):
    nb.js("await app.commands.execute('apputils:change-theme', {theme: arg});", f'JupyterLab {name}')
    nb.page.wait_for_timeout(1000)


@pytest.mark.parametrize('name', ['Dark', 'Light'])
def test_text_of_panels_is_legible(panels, name):
    theme(panels, name)
    for panel in PANELS:
        bad, count = access.pale(cell(panels, panel))
        assert count > 10 and not bad, (panel, bad)


def test_layer_grid_follows_the_theme(panels):
    grid, seen = cell(panels, 'explorer').locator('.lh'), []
    for name in ('Dark', 'Light'):
        theme(panels, name)
        seen.append(grid.evaluate('c => [...c.getContext("2d").getImageData(0, 0, c.width, 24).data].filter((v, i) => '
                                  'i % 4 == 0).reduce((a, b) => Math.max(a, b), 0)')) # the brightest red of its letters
        assert grid.evaluate('c => c.width / c.clientWidth') == pytest.approx(2, abs=0.01)
    assert seen[0] > 200 and seen[1] < 100, seen


def test_curves_are_legible_on_a_narrow_page(panels):
    panels.page.set_viewport_size(dict(width=700, height=900))
    panels.page.wait_for_timeout(500)
    letters = 'all => all.map((s) => 11 * s.getScreenCTM().a)'
    sizes = cell(panels, 'fit').locator('svg[role=img]').evaluate_all(letters)
    step = cell(panels, 'fit').locator('.widget-label', has_text='(latest)')
    right = [where.evaluate('e => e.getBoundingClientRect().right') for where in (step, cell(panels, 'fit'))]
    whole = step.evaluate('e => e.scrollWidth <= e.clientWidth')
    bars = cell(panels, 'ablation').locator('.mvlm-figure svg').evaluate('s => 8 * s.getScreenCTM().a')
    panels.page.set_viewport_size(dict(width=1200, height=900))
    assert len(sizes) == 6 and min(sizes) > 9.5, sizes
    assert whole and right[0] <= right[1] + 1, right # the step of the maps is not cut
    assert bars > 7.5, bars # pixels, of its smallest text; on narrower pages it scrolls


def test_everything_that_can_be_focused_has_a_name(panels):
    missing, count = access.nameless(panels.page, '.jp-OutputArea-output')
    assert count > 200 and not missing, missing


def test_panels_by_keyboard_only(panels):
    "Tab from panel to panel, and open an image of the atlas by Enter."
    page = panels.page
    first = cell(panels, 'atlas').locator('select').first
    first.focus()
    for _ in range(12):
        page.keyboard.press('Tab')
        at = page.evaluate('() => ({...document.activeElement.dataset})')
        if 'image' in at: break
    assert {'image', 'token', 'patch'} <= at.keys()
    page.keyboard.press('Enter')
    canvas = cell(panels, 'explorer').locator('.frame canvas').first
    expect(canvas).to_have_attribute('aria-label', re.compile(f"^image {at['image']}: token {at['token']}, layer 0"))
    assert panels.ask('one.selection') == dict(image=int(at['image']), layer=0, head='mean', token=int(at['token']),
                                               patch=int(at['patch']))


def test_search_hits_and_pairs_open_the_explorer(panels):
    canvas = cell(panels, 'explorer').locator('.frame canvas').first
    hit = cell(panels, 'search').locator('button[data-image]').nth(1)
    image = hit.get_attribute('data-image')
    hit.click()
    expect(canvas).to_have_attribute('aria-label', re.compile(f'^image {image}: CLS, layer 1'))
    expect(cell(panels, 'explorer').get_by_label('caption', exact=True)).to_have_value(panels.ask('search.caption'))
    pair = cell(panels, 'map').locator('.pair button').nth(1)
    image = pair.locator('img').get_attribute('data-id')
    pair.click()
    expect(canvas).to_have_attribute('aria-label', re.compile(f'^image {image}: '))
    expect(cell(panels, 'map').locator('.mvlm-x').nth(1)).to_have_count(0) # no second explorer


def test_images_fill_the_map(panels):
    "Captions, which are far from the images, take no room while they are hidden."
    shares = """c => { const { width, height } = c, rgba = c.getContext('2d').getImageData(0, 0, width, height).data;
        const xs = [], ys = [];
        for (let i = 0; i < width * height; i++)
            if (rgba[4 * i + 3]) { xs.push(i % width); ys.push(Math.floor(i / width)); }
        const extent = (v) => v.reduce((a, b) => Math.max(a, b)) - v.reduce((a, b) => Math.min(a, b));
        return [[xs, width], [ys, height]].map(([v, n]) => extent(v) / n); }"""
    plot = cell(panels, 'map')
    assert min(plot.locator('canvas').evaluate(shares)) > 0.85
    plot.get_by_label('captions').check()
    assert min(plot.locator('canvas').evaluate(shares)) > 0.85
    plot.get_by_label('captions').uncheck()


def test_panels_compute_in_the_background(panels):
    assert panels.ask('background') == []


def test_ablation_begins_with_its_verdict(panels):
    theme(panels, 'Light')
    panel = cell(panels, 'ablation')
    tops = panel.evaluate("""e => ['b', '.mvlm-figure svg', 'details', 'select', 'table:not(details table)'].map(
        (s) => e.querySelector(s).getBoundingClientRect().top)""")
    assert tops == sorted(tops)
    verdict = re.compile(r'No verdict.*by [+-]\d+\.\d points \(95 % CI .*22 images')
    expect(panel.locator('b').first).to_contain_text(verdict)
    assert panel.locator('details').get_attribute('open') is None
    right = panel.evaluate('e => [e.querySelector("svg"), e].map((x) => x.getBoundingClientRect().right)')
    assert right[0] <= right[1] + 1
    hints = panel.locator('button').evaluate_all('all => all.map((b) => b.title).join(" ")')
    assert 'colored means on' in hints and 'blue' not in hints


def test_summary_of_the_configuration_stays(panels):
    editor = cell(panels, 'config')
    page, field = panels.page, editor.get_by_role('textbox', name='model.std')
    field.scroll_into_view_if_needed()
    command = editor.locator('.mvlm-side h4').first
    assert command.is_visible() and 0 < command.bounding_box()['y'] < page.viewport_size['height']
    heads = editor.get_by_role('textbox', name='model.num_heads')
    heads.fill('7')
    heads.press('Tab')
    expect(editor.get_by_role('alert')).to_contain_text('nearest model.num_heads: 4 or 8')
    heads.fill('2')
    heads.press('Tab')
    expect(editor.get_by_role('alert')).to_have_count(0)


def test_importing_prints_nothing(panels):
    assert panels.outputs()[0] == []


def test_a_user_error_is_one_line(lab, page):
    run = ("from contextlib import redirect_stdout\nfrom io import StringIO\nwith redirect_stdout(StringIO()):\n    "
           "fit(compose([*words, 'training.max_steps=2', 'training.run_dir=lines'], config_name='quickstart'))")
    cells = SETUP, run, "open_trained('lines')", "FitDashboard(open_trained('lines'))"
    nb = lab.open(page, lab.write('lines.ipynb', *cells))
    nb.start()
    page.wait_for_function('() => window.ran', timeout=120_000)
    shown, failed = nb.outputs()[2][0]['data']['text/plain'], nb.outputs()[3][0]
    assert len(''.join(shown).splitlines()) == 1 and 'M parameters' in ''.join(shown)
    assert failed['ename'] == 'UserError' and len(failed['traceback']) == 1
    assert 'give a Learner' in failed['traceback'][0]


# Pages without a kernel

def explorer_page(page, folder, vit, change=lambda side: None):
    "Open the page of an explorer of one image, with changed maps."
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    explorer = AttentionExplorer(vit, [image])
    path = explorer.export_html(folder/'explorer.html')
    text = path.read_text()
    head, data, tail = re.fullmatch(r'(.*<script type="application/json"[^>]*>)(.*?)(</script>.*)', text, re.S).groups()
    data = json.loads(data)
    change(data)
    path.write_text(head + json.dumps(data) + tail)
    page.goto(path.as_uri())
    expect(page.locator('.mvlm-x')).to_have_attribute('aria-busy', 'false')
    page.wait_for_timeout(300)
    return page.locator('.mvlm-x')


def painted(x):
    "Return how far each pixel of the first tile is from the photo, 0..255: median and maximum."
    tile = x.locator('.tokens canvas').nth(1)
    read = 'c => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]'
    opacity = x.locator('input[type=range]')
    seen = []
    for value in ('0.8', '0'):
        opacity.fill(value)
        x.page.wait_for_timeout(200)
        seen.append(np.array(tile.evaluate(read)).reshape(-1, 4)[:, :3])
    far = np.abs(seen[0] - seen[1]).max(1)
    opacity.fill('0.8')
    return np.median(far), far.max()


def test_an_outlier_hides_neither_the_maps_nor_the_image(offline_page, tmp_path):
    vit = tiny_vit(num_memory_tokens=3)
    def outlier(data): # all tokens attend to patch 0 about 70 times as much as to any other
        block = data['images'][0]['sides'][0]['blocks'][data['state']['layer']]['reads']
        q = np.frombuffer(base64.b64decode(block['data']), np.uint8).reshape(len(block['max']), 4, -1).copy()
        q[:], q[:, :, ::3], q[:, :, 0] = 30, 36, 255 # a byte is the square root of a value
        block['data'] = base64.b64encode(q.tobytes()).decode()
        block['max'] = [3.6] * len(block['max']) # 30 and 36 stand for 1 and 1.4 times uniform
        data['state']['show'] = data['state']['direction'] = 'reads'
    x = explorer_page(offline_page, tmp_path, vit, outlier)
    robust, top = painted(x)
    x.locator('.choice.scale select').select_option(label='to the maximum')
    offline_page.wait_for_timeout(200)
    linear, _ = painted(x)
    assert robust >= 3 > linear, (robust, linear) # the others show, and only on the robust scale
    assert robust < 60 < top # and the photo shows through them


def test_explorer_says_that_it_waits_for_a_busy_kernel(lab, page):
    nb = lab.open(page, lab.write('busy.ipynb', SETUP + 'AttentionExplorer(learn)', 'import time; time.sleep(15)'))
    nb.start()
    explorer = nb.cell(0).locator('.mvlm-x')
    expect(explorer.get_by_role('status')).to_have_text('Waiting for the first maps …', timeout=60_000)
    expect(explorer.get_by_label('head', exact=True)).to_have_value('mean')
    nb.finish(60)
    expect(explorer.locator('.figure p')).to_contain_text('token 0, layer 0')
    expect(explorer.locator('.message')).to_be_empty()


def test_no_image_without_content(lab, chromium):
    page = chromium.new_page()
    nb = lab.open(page, lab.write('twin.ipynb', SETUP + "twin = make_learner(compose([*words, 'model/memory=off'], "
                                  "config_name='quickstart'))\nFitDashboard(twin)",
                                  'from memory_vlm.widgets.base import CellImage\nCellImage(hint="a map")'))
    nb.run(60)
    expect(nb.cell(0)).to_contain_text('No maps: the model has no memory tokens')
    expect(nb.cell(1).locator('.mvlm-image')).to_be_attached()
    expect(page.locator('.jp-OutputArea img:visible')).to_have_count(0)
    page.close()


def test_kv_memory_offers_only_what_it_has(offline_page, tmp_path):
    x = explorer_page(offline_page, tmp_path, tiny_vit(num_memory_tokens=3, memory_position='kv'))
    shown = x.locator('.choice.show select option').all_inner_texts()
    assert 'who reads the token' in shown and 'what the token reads' not in shown
    expect(x.locator('.figure p')).to_contain_text('on average it receives')


def test_negative_bars_grow_to_the_left(offline_page, tmp_path):
    def scored(data):
        side = data['images'][0]['sides'][0]
        side['score'] = dict(text='cosine 0.1.', cosine=.1, others=[], adds=[.02, -.04, .01], exact=True)
    x = explorer_page(offline_page, tmp_path, tiny_vit(num_memory_tokens=3), scored)
    bars = x.locator('.mvlm-bars', has_text='Direct contribution').locator('> div:first-of-type > div:nth-child(3n+2)')
    expect(bars).to_have_count(3)
    spans = bars.evaluate_all("""all => all.map((b) => { const o = b.getBoundingClientRect(), p = b.children[0]
        .getBoundingClientRect(); return [(p.left - o.left) / o.width, (p.right - o.left) / o.width]; })""")
    assert np.allclose(spans, [[.5, .75], [0, .5], [.5, .625]], atol=0.01), spans


def text_boxes(page, svg, folder):
    "Show an SVG whose text is text, and return the boxes of its texts."
    (folder/'figure.html').write_text(f'<body style="color:#111">{svg}</body>', encoding='utf-8')
    page.goto((folder/'figure.html').as_uri())
    return page.locator('svg').first.evaluate("""e => [...e.querySelectorAll('text, [id^=text_]')].map((t) => {
        const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })""")


def test_curves_of_20000_steps(offline_page, tmp_path):
    step = np.arange(100, 20_001, 100)
    table = pd.DataFrame(dict(step=step, train_loss=2 / np.sqrt(step), lr=1e-3, temperature=.07))
    table['i2t/R@1'] = np.where(step % 2000 == 0, step / 40_000, np.nan)
    fig = training_curves(table, gallery=512)
    assert len({ax.get_xlim() for ax in fig.axes}) == 1
    chance = next(line for line in fig.axes[1].lines if 'chance' in line.get_label())
    gaps = chance._dash_pattern[1] # with short dashes several lines look like a comb
    assert min(gaps[::2]) > 5
    boxes = text_boxes(offline_page, to_svg(fig), tmp_path)
    assert len(boxes) > 20
    hits = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a[0] < b[2] + 4 and b[0] < a[2] + 4
            and a[1] < b[3] - 1 and b[1] < a[3] - 1] # on a line, nearer than 4 pixels
    assert not hits, hits
    left = offline_page.locator('[id^=patch_]').evaluate_all('all => all.map((p) => p.getBoundingClientRect().width)')
    assert left # axes are drawn


def test_curves_of_one_evaluation():
    "A run of two steps has one evaluation: the axis has whole steps."
    fig = training_curves(pd.DataFrame({'step': [2], 'val_loss': [3.1], 'i2t/R@1': [.05]}))
    ticks = fig.axes[0].get_xticks()
    assert set(ticks) == {1, 2, 3}, ticks


def test_logged_figures_have_dark_text():
    "TensorBoard and W&B show a figure without its transparency."
    from memory_vlm.run import _pixels
    fig = training_curves(pd.DataFrame({'step': [1, 2], 'val_loss': [3.1, 2]}))
    pixels = _pixels(fig).astype(int)
    gray = pixels[np.ptp(pixels, -1) < 12] # ink and page, without the curve
    assert gray.max() == 255 and gray.min() < 0x40


def test_study_of_one_seed(offline_page, tmp_path):
    fig = study_plot(pd.DataFrame({'variant': ['memory', 'plain'], 'seed': [0, 0], 'i2t/R@1': [.4, .3]}))
    ax = fig.axes[0]
    at = [ax.transAxes.inverted().transform(ax.transData.transform((v, 0)))[0] for v in (.3, .4)]
    assert all(0.03 < x < 0.97 for x in at), at
    assert len(text_boxes(offline_page, to_svg(fig), tmp_path)) > 3


def test_pdf_has_truetype_fonts(tmp_path):
    training_curves(pd.DataFrame(dict(step=[1, 2], train_loss=[2., 1.])), gallery=8).save(tmp_path/'a.pdf')
    data = (tmp_path/'a.pdf').read_bytes()
    assert b'/Type3' not in data and (b'/TrueType' in data or b'/CIDFontType2' in data)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run without memory and its twin, by name."
    from memory_vlm.config import compose
    from memory_vlm.run import fit
    folder = tmp_path_factory.mktemp('report')/'runs'
    return {name: fit(compose(['training.max_steps=4', 'training.batch_size=16', 'training.data.train_path=scenes:tiny',
                               'training.data.val_path=scenes:tiny', 'training.preflight=false', 'model.depth=2',
                               'model.text.depth=1', 'training.logging.tensorboard=false',
                               f'training.run_dir={folder}/{name}', *more], config_name='quickstart'))
            for name, more in (('plain', ['model/memory=off']), ('memory', []))}


@pytest.fixture(scope='module')
def report(runs):
    "The page of a run with memory that has a twin."
    from memory_vlm.viz.page import write_report_page
    return write_report_page(runs['memory'].folder, runs['memory'])


@pytest.fixture(scope='module')
def pages(runs, tmp_path_factory):
    "The page of each panel, by name."
    from memory_vlm import widgets as W
    learn, twin, folder = runs['memory'].learn, runs['plain'].learn, tmp_path_factory.mktemp('pages')
    ablation = W.AblationPanel(learn)
    ablation.measure()
    panels = dict(fit=W.FitDashboard(learn, steps=2), explorer=AttentionExplorer(learn),
                  two=AttentionExplorer(learn, other=twin), plain=AttentionExplorer(twin), atlas=W.MemoryAtlas(learn),
                  ablation=ablation, search=W.ImageSearch(learn), map=W.EmbeddingMap(learn, other=twin),
                  config=W.ConfigEditor(learn.cfg))
    return {name: panel.export_html(folder/f'{name}.html') for name, panel in panels.items()}


PAGES = ['fit', 'explorer', 'two', 'plain', 'atlas', 'ablation', 'search', 'map', 'config']

@pytest.mark.parametrize('name', PAGES)
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_of_panels(offline_page, pages, scheme, name):
    "Text is legible, controls have names and a visible focus, and a phone needs no sideways scrolling."
    offline_page.emulate_media(color_scheme=scheme)
    offline_page.goto(pages[name].as_uri())
    offline_page.wait_for_timeout(500)
    bad, count = access.pale(offline_page.locator('body'))
    assert count > 3 and not bad, bad[:5]
    missing, _ = access.nameless(offline_page, 'body')
    assert not missing, missing
    for _ in range(30):
        offline_page.keyboard.press('Tab')
        seen = offline_page.evaluate("""() => { const e = document.activeElement; return e === document.body ||
            getComputedStyle(e).outlineStyle !== 'none' || e.outerHTML.slice(0, 200); }""")
        assert seen is True, seen
    offline_page.set_viewport_size(dict(width=390, height=844))
    offline_page.wait_for_timeout(500)
    assert offline_page.evaluate('document.documentElement.scrollWidth') == 390
    for ticks in offline_page.locator('.ticks:visible').all(): # of the color scales
        boxes = sorted(ticks.locator('span').evaluate_all(
            'all => all.map((t) => t.getBoundingClientRect()).map((b) => [b.left, b.right])'))
        assert all(a[1] <= b[0] for a, b in zip(boxes, boxes[1:])), boxes


def test_a_pinned_token_is_not_compared_with_itself(offline_page, pages):
    offline_page.goto(pages['explorer'].as_uri())
    tokens = offline_page.locator('.tokens').get_by_role('option')
    tokens.nth(2).click(modifiers=['Shift'])
    tokens.nth(2).click()
    offline_page.mouse.move(0, 0)
    expect(offline_page.locator('.figure p')).to_have_text(
        'token 1 is pinned: choose another token to see the difference of their maps.')
    expect(offline_page.locator('.figure .scale')).to_be_hidden()
    tokens.nth(3).click()
    expect(offline_page.locator('.figure p')).to_contain_text('token 2 minus token 1: cosine')
    expect(offline_page.locator('.figure .scale')).to_be_visible()


def test_sentence_of_a_saved_image_is_whole(offline_page, pages, tmp_path):
    offline_page.goto(pages['explorer'].as_uri())
    with offline_page.expect_download() as saved: offline_page.get_by_role('button', name='as PNG').click()
    saved.value.save_as(tmp_path/'map.png')
    image = np.asarray(Image.open(tmp_path/'map.png').convert('L'))
    text = image[image.shape[1]:] # below the square photo
    assert text.min() < 100 and text[:, -3:].min() == 255, text.shape
    with offline_page.expect_download() as saved: offline_page.get_by_role('button', name='as SVG').click()
    saved.value.save_as(tmp_path/'map.svg')
    offline_page.goto((tmp_path/'map.svg').as_uri())
    right = offline_page.locator('text').evaluate_all('all => all.map((t) => t.getBBox().x + t.getBBox().width)')
    assert len(right) > 1 and max(right) < 470, right # of 480


def test_two_models_fill_the_width(offline_page, pages):
    "Three maps in one row, and the grids and tokens of both models in the next."
    offline_page.set_viewport_size(dict(width=1400, height=900))
    offline_page.goto(pages['two'].as_uri())
    offline_page.wait_for_timeout(500)
    for part, count in (('.stage', 3), ('.panels', 2)):
        boxes = offline_page.locator(part).evaluate(
            'e => [e, ...e.children].map((c) => c.getBoundingClientRect()).map((b) => [b.right, b.top])')
        assert len(boxes) == count + 1 and len({round(top) for _, top in boxes[1:]}) == 1, boxes
        assert boxes[-1][0] == pytest.approx(boxes[0][0], abs=2), boxes


def test_page_of_an_ablation_of_nothing(offline_page, pages):
    offline_page.goto(pages['ablation'].as_uri())
    figure = offline_page.locator('.figure').nth(2)
    expect(figure.locator('p')).to_have_text('The two maps are equal.')
    expect(figure.locator('.scale')).to_be_hidden()


def test_page_of_an_embedding_map_promises_no_explorer(offline_page, pages):
    offline_page.goto(pages['map'].as_uri())
    expect(offline_page.get_by_role('status')).to_have_text(
        'Point at an image to read its caption; draw around points to select them.')
    pair = offline_page.locator('.pair button').first
    image = pair.locator('img').get_attribute('data-id')
    assert pair.get_attribute('title') == f'Show on the map: image {image}'
    pair.click()
    expect(offline_page.get_by_role('status')).to_contain_text(f'image {image}: ')
    assert 'opens' not in offline_page.locator('canvas').get_attribute('aria-label')


def test_page_of_two_models_says_whose_maps_are_left_out(offline_page, tmp_path):
    vits = [tiny_vit(num_memory_tokens=1), tiny_vit()]
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    explorer = AttentionExplorer(vits[0], [image], other=vits[1], names=('A', 'B'))
    offline_page.goto(explorer.export_html(tmp_path/'two.html', max_kb=8).as_uri())
    expect(offline_page.locator('.lead')).to_contain_text('B: To keep the file small')
    assert 'A: ' not in offline_page.locator('.lead').inner_text()


def test_largest_difference_of_two_models(offline_page, tmp_path):
    "The sentence names the patch where the difference is largest, also where it is negative."
    vits = [tiny_vit(num_memory_tokens=3), tiny_vit(num_memory_tokens=3)]
    torch.manual_seed(0)
    with torch.no_grad():
        for p in vits[1].parameters(): p.add_(0.3 * torch.randn_like(p))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    explorer = AttentionExplorer(vits[0], [image], other=vits[1])
    path, layer, found = explorer.export_html(tmp_path/'two.html'), explorer.layer, []
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.S)[1])
    for side in data['images'][0]['sides']:
        block = side['blocks'][layer]['reads']
        q = np.frombuffer(base64.b64decode(block['data']), np.uint8).reshape(len(block['max']), 4, -1) / 255
        found.append(np.mean(np.array(block['max'])[:, None, None] * q ** 2, 0))
    difference = found[0] - found[1]
    token = int(np.argmax(np.abs(difference.min(1)) - difference.max(1))) # the most negative
    patch = np.abs(difference[token]).argmax()
    assert difference[token, patch] < 0
    offline_page.goto(path.as_uri())
    offline_page.locator('.choice.token select').first.select_option(index=token)
    row, column = divmod(int(patch), data['images'][0]['sides'][0]['grid'][1])
    sentence = offline_page.locator('.figure').nth(2).locator('p')
    expect(sentence).to_contain_text(f'largest at row {row}, column {column}: -')


def test_report_of_a_run(offline_page, report):
    offline_page.set_viewport_size(dict(width=390, height=844))
    offline_page.goto(report.as_uri())
    expect(offline_page.locator('.mvlm-x')).to_have_attribute('aria-busy', 'false')
    assert offline_page.evaluate('document.documentElement.scrollWidth') == 390
    figures = offline_page.locator('figure:visible')
    sizes = figures.evaluate_all('all => all.map((f) => [f.scrollWidth, f.clientWidth])')
    assert len(sizes) >= 2 and all(a <= b for a, b in sizes), sizes # whole, without scrolling
    letters = figures.locator('svg').evaluate_all('all => all.map((s) => 7 * s.getScreenCTM().a)')
    assert min(letters) > 8, letters # pixels, of the smallest text
    lead = offline_page.locator('p.lead')
    expect(lead).to_contain_text(re.compile(r'^Does memory matter\? .*points \(95 % CI .*Its twin without memory .*'
                                            r'memory changes it by [+-]\d'))
    assert lead.bounding_box()['y'] < 200
    inside = offline_page.locator('.card b').evaluate_all('''all => all.map((b) => { const range = new Range();
        b.textContent = '100.0%'; range.selectNodeContents(b); return [range.getBoundingClientRect().right,
        b.getBoundingClientRect().right]; })''')
    assert inside and all(a <= b + 1 for a, b in inside), inside # within the padding of its card
    heads = offline_page.locator('h2').all_inner_texts()
    assert heads[:4] == ['Training curves', 'What memory does', 'Ablation of memory', 'Attention of memory tokens']
    expect(offline_page.locator('main')).to_contain_text('M parameters')
    offline_page.locator('.thumbs button').nth(2).click()
    expect(offline_page.locator('.frame canvas').first).to_have_attribute('aria-label', re.compile('^image 2: token 0'))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_of_pages_is_legible(offline_page, report, scheme):
    offline_page.emulate_media(color_scheme=scheme)
    offline_page.goto(report.as_uri())
    expect(offline_page.locator('.mvlm-x')).to_have_attribute('aria-busy', 'false')
    bad, count = access.pale(offline_page.locator('body'))
    assert count > 60 and not bad, bad
    missing, count = access.nameless(offline_page, 'body')
    assert count > 20 and not missing, missing


def test_kv_memory_opens_on_a_map(offline_page, tmp_path):
    "Attention to CLS is not captured, so a page about memory outside the sequence opens on a memory token."
    vit = tiny_vit(num_memory_tokens=3, memory_position='kv')
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    with capture(vit) as maps: image_features(vit, torch.tensor(image).permute(2, 0, 1)[None])
    offline_page.goto(maps_page(tmp_path/'kv.html', 'kv', '', [image_data(0, image, dict(a=maps, b=maps))]).as_uri())
    expect(offline_page.locator('.figure p').first).to_contain_text('token 0, layer')
    offline_page.locator('.choice.token select').select_option(label='CLS')
    expect(offline_page.locator('.figure p').first).to_have_text(
        'Attention to CLS is not recorded: choose a memory token.')


def test_kv_memory_beside_its_twin_opens_on_a_map(offline_page, tmp_path):
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    explorer = AttentionExplorer(tiny_vit(num_memory_tokens=3, memory_position='kv'), [image], other=tiny_vit())
    offline_page.goto(explorer.export_html(tmp_path/'kv.html').as_uri())
    expect(offline_page.locator('.figure p').first).to_contain_text('token 0, layer')


@pytest.mark.parametrize('tokens', [1, 3, 16, 40, 64])
def test_token_maps_fill_their_panel(offline_page, tmp_path, tokens):
    "All maps are whole, or the last visible row is cut in the middle, which says that more follow."
    offline_page.set_viewport_size(dict(width=1400, height=900))
    x = explorer_page(offline_page, tmp_path, tiny_vit(num_memory_tokens=tokens))
    height, bottom, whole, last = x.locator('.tokens').evaluate("""e => { const b = e.getBoundingClientRect(), size =
        [...e.querySelectorAll('canvas')].map((c) => c.getBoundingClientRect()), all = [...e.children].map((c) =>
        c.getBoundingClientRect()); return [b.height, b.bottom, Math.min(...size.map((c) => c.width)),
        Math.max(...all.map((t) => t.bottom))]; }""")
    assert height <= 410 and whole >= 56
    if tokens <= 40: assert last <= bottom and (whole > 100 or height > 300), (last, bottom, whole)
    else:
        cut = [b['y'] < bottom < b['y'] + 0.7 * b['height'] for b in map(lambda c: c.bounding_box(),
                                                                        x.locator('.tokens canvas').all())]
        assert any(cut)


def test_two_models_at_700_pixels(offline_page, pages):
    "Three maps in one row, tokens within 650 pixels, and scales whose labels do not touch."
    offline_page.set_viewport_size(dict(width=700, height=900))
    offline_page.goto(pages['two'].as_uri())
    offline_page.wait_for_timeout(500)
    boxes = [f.bounding_box() for f in offline_page.locator('.stage .figure').all()]
    assert len(boxes) == 3 and len({round(b['y']) for b in boxes}) == 1, boxes
    offline_page.locator('.figure h4').last.evaluate("e => { e.textContent = 'a long name of a model '.repeat(4); }")
    frames = [f.bounding_box()['y'] for f in offline_page.locator('.frame').all()]
    assert max(frames) - min(frames) < 1, frames # a title of several lines moves all
    strip = offline_page.locator('.tokens').first.bounding_box()
    assert strip['y'] + strip['height'] - boxes[0]['y'] <= 650
    for ticks in offline_page.locator('.ticks').all():
        at = sorted(ticks.locator('span').evaluate_all('all => all.map((t) => [t.getBoundingClientRect().left, '
                                                       't.getBoundingClientRect().right])'))
        assert len(at) >= 2 and all(a[1] < b[0] for a, b in zip(at, at[1:])), at


def test_scale_of_a_difference(offline_page, pages):
    "What is cut may be negative, so both ends say so."
    offline_page.goto(pages['two'].as_uri())
    offline_page.wait_for_timeout(500)
    ends = offline_page.locator('.figure').nth(2).locator('.ticks span').all_inner_texts()
    assert not any('maximum' in e for e in ends) and any(re.match(r'(≤ )?−0\.\d', e) for e in ends), ends


def test_page_without_heads_has_no_columns_of_heads(offline_page, tmp_path):
    vit = tiny_vit(num_memory_tokens=40)
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    path = AttentionExplorer(vit, [image]).export_html(tmp_path/'few.html', max_kb=5)
    offline_page.goto(path.as_uri())
    expect(offline_page.locator('.lead')).to_contain_text('heads are averaged')
    grid = offline_page.locator('.lh')
    box = grid.bounding_box()
    grid.hover(position=dict(x=box['width'] - 10, y=20)) # the mean fills the whole width
    expect(offline_page.locator('.panel .value')).to_contain_text('layer 0, mean of heads: ')


def test_bars_have_as_many_decimals(offline_page, tmp_path):
    def scored(data):
        side = data['images'][0]['sides'][0]
        side['score'] = dict(text='cosine 0.1.', cosine=.1, others=[.1, .2, .3, .4], adds=[.5, -.00004, .02],
                             exact=True)
    x = explorer_page(offline_page, tmp_path, tiny_vit(num_memory_tokens=3), scored)
    numbers = x.locator('.mvlm-bars', has_text='Direct contribution').locator('> div > div:nth-child(3n)')
    assert numbers.all_inner_texts() == ['0.500', '0.000', '0.020']
    expect(x.locator('.words')).to_contain_text('Number of captions by their cosine with the image; orange: this '
                                                'caption.')


def test_search_page_of_a_model_without_memory(offline_page, runs, tmp_path):
    from memory_vlm.widgets import ImageSearch
    offline_page.goto(ImageSearch(runs['plain'].learn).export_html(tmp_path/'search.html').as_uri())
    expect(offline_page.locator('.figure p')).to_contain_text('CLS, layer 1, mean of heads: ')


def test_page_of_a_fit(offline_page, pages):
    "The names of the maps are text, the maps begin at the left, and the curves are not called those of no fit."
    offline_page.goto(pages['fit'].as_uri())
    expect(offline_page.locator('.lead')).to_have_text('Evaluations of an earlier fit.')
    left = offline_page.locator('svg[role=img]').evaluate("""e => { const box = e.getBoundingClientRect(), image = [
        ...e.querySelectorAll('image')].map((i) => i.getBoundingClientRect()).reduce((a, b) => (a.width > b.width ? a
        : b));
        return [(image.left - box.left) / box.width, image.width / box.width]; }""")
    assert left[0] < 0.12 and left[1] > 0.7, left
