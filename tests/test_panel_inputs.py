"""Panels of unusual data in a browser: diverged weights, long, right-to-left and malicious captions."""
import json
import numpy as np
import pytest
import re
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.vision import tiny_vit
from memory_vlm.widgets import AttentionExplorer, EmbeddingMap, ImageSearch, MemoryAtlas
from memory_vlm.widgets.html import _scripts, asset
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)

LONG = f'{" ".join(f"word{i}" for i in range(60))} {"x" * 200}'
RIGHT_TO_LEFT = 'תפוח אדום מתחת לסופגנייה'
HTML = '<img src=x onerror="document.title=\'run\'"></script><script>document.title="run"</script>'


def image(size=64, seed=0): return np.random.default_rng(seed).integers(60, 200, (size, size, 3), dtype=np.uint8)


def clip(*words, nan=False):
    torch.manual_seed(0)
    model = MemoryCLIP.from_config(compose(['model=tiny', *words]).model).eval()
    if nan:
        with torch.no_grad():
            for p in model.parameters(): p.fill_(torch.nan)
    return model


@pytest.fixture(scope='module')
def model(): return clip()


@pytest.fixture(scope='module')
def pages(tmp_path_factory, model):
    "Pages of explorers, by name."
    made = dict(long=(model, [(image(), LONG)]), html=(model, [(image(), HTML)]),
                right=(model, [(image(), RIGHT_TO_LEFT)]), none=(model, [image()]), empty=(model, [(image(), '')]),
                color=(model, [(np.full_like(image(), 255), 'white')]),
                token=(clip('model.memory.num_memory_tokens=1'), [(image(), 'one')]),
                nan=(clip(nan=True), [(image(), 'a red apple')]),
                plain=(tiny_vit(num_memory_tokens=0), [image()]),
                fine=(tiny_vit(img_size=256, patch_size=8, num_memory_tokens=16), [image(256)]))
    folder = tmp_path_factory.mktemp('inputs')
    found = {name: AttentionExplorer(*args).export_html(folder/f'{name}.html') for name, args in made.items()}
    two = AttentionExplorer(model, [(image(), 'a red apple')], other=clip(nan=True), names=('model', 'diverged'))
    return found | dict(two=two.export_html(folder/'two.html'))


NAMES = ['long', 'html', 'right', 'none', 'empty', 'color', 'token', 'nan', 'plain', 'fine', 'two']

@pytest.mark.parametrize('name', NAMES)
def test_explorer_of_unusual_data(offline_page, pages, name):
    "No script error, no sideways scrolling, a sentence, and captions as text."
    for width in (390, 1000):
        offline_page.set_viewport_size(dict(width=width, height=900))
        offline_page.goto(pages[name].as_uri())
        expect(offline_page.locator('.mvlm-x')).to_have_attribute('aria-busy', 'false')
        expect(offline_page.locator('.figure p').first).to_contain_text(re.compile(r'layer \d'))
        assert offline_page.evaluate('document.documentElement.scrollWidth') == width
    assert offline_page.title() != 'run' and offline_page.locator('img[src=x]').count() == 0
    for key in 'm]hp?': offline_page.locator('.figure canvas').first.press(key)
    for option in offline_page.locator('.choice.show option').all_inner_texts():
        offline_page.locator('.choice.show select').select_option(label=option)
        offline_page.wait_for_timeout(100)
    for kind in ('SVG', 'CSV', 'PNG'):
        with offline_page.expect_download(): offline_page.locator('.tools').get_by_role('button', name=kind).click()


def test_captions_are_text(offline_page, pages):
    offline_page.goto(pages['html'].as_uri())
    expect(offline_page.locator('.spans button').first).to_have_text(f'“{HTML}”')
    offline_page.goto(pages['right'].as_uri())
    small = offline_page.locator('.spans small').nth(1)
    expect(small).to_have_text(re.compile(r'^: [+-]\d'))
    xs = small.evaluate("""e => [...e.textContent].map((_, i) => { const r = document.createRange();
        r.setStart(e.firstChild, i); r.setEnd(e.firstChild, i + 1); return r.getBoundingClientRect().left; })""")
    assert xs == sorted(xs) # the sign stands before its number


def test_diverged_weights_are_no_zeros(offline_page, pages):
    says = 'token 0, layer 2: the map is not finite (NaN). Weights of {} may have diverged.'
    offline_page.goto(pages['nan'].as_uri())
    expect(offline_page.locator('.figure p')).to_have_text(says.format('model'))
    expect(offline_page.locator('.words')).to_contain_text('The cosine of image and caption is not finite (NaN)')
    expect(offline_page.locator('.words')).not_to_contain_text('rank')
    expect(offline_page.locator('.figure .scale')).to_be_hidden()
    expect(offline_page.locator('.panel .value')).to_be_empty() # no legend of the grid
    offline_page.locator('.figure canvas').hover()
    expect(offline_page.locator('.figure .value')).to_have_text(re.compile(r'^row \d, column \d: NaN$'))
    expect(offline_page.locator('.about')).to_have_text('model, 8 memory tokens')
    offline_page.goto(pages['two'].as_uri())
    sentences = offline_page.locator('.figure p')
    expect(sentences.nth(0)).to_contain_text('times uniform')
    expect(sentences.nth(1)).to_have_text(says.format('diverged'))
    expect(sentences.nth(2)).to_have_text('No difference is shown: a map is missing or not finite.')


def test_panels_of_diverged_weights_say_so():
    bad, data = clip(nan=True), [(image(seed=i), f'caption {i}') for i in range(4)]
    says = 'The features of 4 of 4 images are not finite (NaN): the weights may have diverged.'
    for panel in (EmbeddingMap(bad, data), ImageSearch(bad, data), MemoryAtlas(bad, data)):
        panel.wait()
        assert (panel.message, str(panel.problem)) == (says, says)
        with pytest.raises(UserError): panel.snapshot()
        with pytest.raises(UserError): panel.export_html('never.html')
    explorer = AttentionExplorer(bad, data)
    for want in (dict(want='effect'), dict(want='order', by='hardest'), dict(want='order', by='telling')):
        explorer._heard(explorer, want, [])
        assert explorer.message == says
    words = ' '.join(t.get_text() for t in explorer.snapshot().findobj(lambda x: hasattr(x, 'get_text')))
    assert 'Maps of model are not finite (NaN).' in words


def points(count, columns, seed=0, **more):
    "Return data of an embedding map, as its page holds it."
    at = np.random.default_rng(seed).normal(size=(count, 2)).round(3).tolist()
    shown = [dict(x=x, y=y, id=i, caption=False) for i, (x, y) in enumerate(at)]
    return dict(points=shown, captions=['a caption'] * count, wrong=[0] * count,
                columns=dict(cosine=[0] * count) | columns, twin='', color='', note='PCA.', how='pca',
                ways=['pca']) | more


def open_map(page, data, folder):
    (folder/'map.html').write_text(
        f'<!doctype html><meta charset="utf-8"><style>{asset("explorer.css")}</style><div id="root"></div><script>'
        f'{_scripts("common.js", "map.js")}\nconst asked = [];\n'
        f'makeMap(document.getElementById("root"), {{data: {json.dumps(data)}, color: "", '
        'select() {}, thumbs() {}, project: (how) => asked.push(how)});</script>', encoding='utf-8')
    page.goto((folder/'map.html').as_uri())


def test_colors_of_negative_changes_of_rank(offline_page, tmp_path):
    change = np.linspace(-40, 40, 41)
    data = points(41, dict(rank=[1] * 41, rank_change=change.tolist()))
    for i, p in enumerate(data['points']): p |= dict(x=i, y=0)
    open_map(offline_page, data, tmp_path)
    offline_page.get_by_label('color', exact=True).select_option(label='rank change')
    reds = offline_page.locator('canvas').evaluate("""c => [...Array(41).keys()].map((i) => c.getContext('2d')
        .getImageData(Math.round(28 + i / 40 * (c.width - 56)), c.height / 2, 1, 1).data[0])""")
    assert np.diff(reds).min() >= 0 and reds[0] < 80 and reds[-1] > 200, reds


def test_hover_paints_no_points_again(offline_page, tmp_path):
    open_map(offline_page, points(5000, dict(rank=[*range(1, 5001)])), tmp_path)
    offline_page.evaluate("""() => { window.arcs = 0; const arc = CanvasRenderingContext2D.prototype.arc;
        CanvasRenderingContext2D.prototype.arc = function(...a) { window.arcs++; return arc.apply(this, a); }; }""")
    box = offline_page.locator('canvas').bounding_box()
    for i in range(5): offline_page.mouse.move(box['x'] + box['width'] / 2 + 20 * i, box['y'] + 200)
    expect(offline_page.get_by_role('status')).to_contain_text('“a caption”, rank')
    assert 0 < offline_page.evaluate('arcs') <= 5


def test_projection_can_be_chosen(offline_page, tmp_path):
    open_map(offline_page, points(20, dict(rank=[1] * 20)), tmp_path)
    expect(offline_page.get_by_label('projection')).to_have_count(0) # UMAP is not installed
    open_map(offline_page, points(20, dict(rank=[1] * 20), ways=['pca', 'umap'], how='umap'), tmp_path)
    expect(offline_page.get_by_label('projection')).to_have_value('UMAP')
    offline_page.get_by_label('projection').select_option('PCA')
    assert offline_page.evaluate('asked') == ['pca']


def test_page_of_an_embedding_map_with_unusual_captions(offline_page, model, tmp_path):
    data = [(image(seed=i), c) for i, c in enumerate((LONG, HTML, RIGHT_TO_LEFT, 'x' * 300, 'a cat'))]
    for name, part in dict(all=data, one=data[4:]).items():
        EmbeddingMap(model, part).export_html(tmp_path/f'{name}.html')
        for width in (390, 1000):
            offline_page.set_viewport_size(dict(width=width, height=900))
            offline_page.goto((tmp_path/f'{name}.html').as_uri())
            expect(offline_page.locator('.pair')).to_have_count(len(part))
            assert offline_page.evaluate('document.documentElement.scrollWidth') == width
            heights = offline_page.locator('.pair').evaluate_all('all => all.map((p) => p.offsetHeight)')
            assert max(heights) < 200
        assert offline_page.title() == 'Embedding map'
    expect(offline_page.locator('.pair')).to_have_text('“a cat”: rank 1') # there is no wrong caption


def test_page_without_single_heads_names_their_mean(offline_page, pages):
    offline_page.goto(pages['fine'].as_uri())
    offline_page.locator('.choice.head select').select_option('1')
    expect(offline_page.locator('.figure p')).to_contain_text('token 0, layer 1, head 1: ')
    offline_page.locator('.choice.layer select').select_option('0')
    expect(offline_page.locator('.figure p')).to_contain_text(
        'layer 0, mean of heads (this page has no single heads of this layer): ')


def test_results_of_a_search_with_unusual_captions(offline_page, model, tmp_path):
    data = [(image(seed=i), c) for i, c in enumerate((LONG, HTML, RIGHT_TO_LEFT, 'x' * 300, 'a cat'))]
    search = ImageSearch(model, data)
    search.wait()
    search.export_html(tmp_path/'search.html')
    cards = f'<!doctype html><meta charset="utf-8"><title>cards</title><body style="margin:0">{search.body.value}'
    (tmp_path/'cards.html').write_text(cards, encoding='utf-8')
    for name in ('search', 'cards'):
        for width in (390, 1000):
            offline_page.set_viewport_size(dict(width=width, height=900))
            offline_page.goto((tmp_path/f'{name}.html').as_uri())
            expect(offline_page.locator('body')).to_contain_text('word59')
            assert offline_page.evaluate('document.documentElement.scrollWidth') == width, name
            assert offline_page.title() != 'run' and offline_page.locator('img[src=x]').count() == 0
