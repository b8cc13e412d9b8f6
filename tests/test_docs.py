"The documentation site: every link resolves, and pages fit phone and desktop screens in light and dark mode."
import csv
import pytest
import re
import sys
from html.parser import HTMLParser
from memory_vlm.config import compose
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import docs
import photograph

SHOWN = ('index', 'benchmarks', 'explain/configuration', 'explain/other_tools', 'tutorials/3_ablate',
         'evaluation/01_retrieval', 'widgets/05_explorer')


class Links(HTMLParser):
    "Links and anchors of a page."
    def __init__(self): super().__init__(); self.to, self.anchors = [], set()
    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[k] for k in ('id', 'name') if found.get(k)}
        self.to += [found[k] for k in ('href', 'src') if found.get(k)]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    assert docs.build(folder)
    return folder


def read(path):
    links = Links()
    links.feed(path.read_text(encoding='utf-8'))
    return links


def test_data_guide_gives_the_epochs_of_the_quickstart():
    epochs = compose(config_name='quickstart').training.epochs
    guide = (ROOT/'nbs/explain/data.ipynb').read_text(encoding='utf-8')
    assert re.findall(r'quickstart: a small model, (\d+) epochs', guide) == [str(epochs)]


@pytest.mark.slow
def test_links_resolve(site):
    pages = {p: read(p) for p in site.rglob('*.html') if p.name != '404.html' and p.parent.name != 'images'}
    assert len(pages) == len(docs.pages()) + 1
    broken = []
    for page, links in pages.items():
        for link in links.to:
            url = urlsplit(link)
            if url.scheme in ('http', 'https', 'data', 'mailto', 'javascript'): continue
            target = (page.parent/unquote(url.path)).resolve() if url.path else page
            if not target.exists(): broken.append(f'{page.relative_to(site)}: {link}')
            elif url.fragment and target in pages and url.fragment not in pages[target].anchors:
                broken.append(f'{page.relative_to(site)}: {link}')
    assert not broken, broken[:20]


@pytest.mark.slow
def test_pages_load_no_external_resources(site):
    outside = {tag for p in site.rglob('*.html') for tag in read(p).to if tag.startswith(('http:', 'https:', '//'))
               and tag.endswith(('.js', '.css', 'shim', '.woff2'))}
    assert not outside, outside


@pytest.mark.slow
def test_reference_lists_every_public_name(site):
    page = (site/'evaluation/01_retrieval.html').read_text(encoding='utf-8')
    for name in ('rank_of_best', 'retrieval_ranks', 'chance_recall'):
        assert f'id="{name}"' in page, name
    assert 'Queries per matrix product (count, 1 or more)' in page and '1024' in page
    # a type with a bar in a cell of a table
    assert '<code>str | None</code>' in (site/'hub/03_publish.html').read_text(encoding='utf-8')


@pytest.mark.slow
def test_benchmark_page_shows_every_table_with_its_origin(site):
    page = (site/'benchmarks.html').read_text(encoding='utf-8')
    for path in sorted((ROOT/'benchmarks'/'results').glob('*.csv')):
        row = next(csv.DictReader(path.open(newline='')))
        for word in (path.stem.replace('_', ' '), *(row[k] for k in ('command', 'machine', 'date'))):
            assert word in page, (path.name, word)


def test_only_long_numbers_are_shortened():
    shown = {'0.2777777777777': '0.2778', '1154.0': '1154', '3540993': '3540993', '2.14.1': '2.14.1',
             '1.8e-06': '1.8e-06', 'True': 'True', '': ''}
    assert {text: docs.figure(text) for text in shown} == shown


@pytest.mark.slow
@pytest.mark.parametrize('width,scheme', photograph.SCREENS)
def test_pages_fit(site, chromium, width, scheme):
    page, failures = chromium.new_page(viewport=dict(width=width, height=900), color_scheme=scheme), []
    page.on('pageerror', lambda e: failures.append(str(e)))
    with photograph.served(site) as url:
        for name in photograph.names(site) if (width, scheme) == (390, 'light') else SHOWN: # every page on a phone
            page.goto(f'{url}/{name}.html')
            if page.evaluate(photograph.TOO_WIDE): failures.append(f'{name} is wider than {width} pixels')
            if not page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth)'):
                failures.append(f'{name} lacks an image')
    page.close()
    assert not failures, failures


@pytest.mark.slow
def test_start_page_shows_a_live_explorer(site, chromium):
    from playwright.sync_api import expect
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    with photograph.served(site) as url:
        page.goto(f'{url}/index.html')
        page.locator('iframe[title="attention explorer"]').scroll_into_view_if_needed()
        inside = page.frame_locator('iframe[title="attention explorer"]')
        inside.locator('.choice.layer select').select_option(label='3')
        expect(inside.locator('.figure p').first).to_contain_text('CLS, layer 3')
    page.close()


@pytest.mark.slow
def test_search_lists_tasks_first(site, chromium):
    from playwright.sync_api import expect
    page, hits = chromium.new_page(), {}
    with photograph.served(site) as url:
        for word in ('resume', 'ablation', 'pretrained'): # all are also titles in the reference
            page.goto(f'{url}/index.html?q={word}')
            found = page.locator('.md-search-result__item > a')
            expect(found.nth(2)).to_be_attached(timeout=120_000)
            links = found.evaluate_all('all => all.map((a) => new URL(a.href).pathname.slice(1))')
            hits[word] = [link.startswith(docs.GUIDES) or link == 'index.html' for link in links]
    page.close()
    assert all(all(h[:3]) for h in hits.values()), hits


@pytest.mark.slow
def test_tabs_by_task_and_links_to_neighbors(site):
    page = (site/'data/01_base.html').read_text(encoding='utf-8')
    tabs = [' '.join(re.sub('<[^>]+>', ' ', t).split()) for t in re.findall('(?s)md-tabs__link">(.*?)</a>', page)]
    assert set(docs.TASKS) <= set(tabs), tabs
    for way in ('prev', 'next'): assert f'md-footer__link--{way}' in page, way


@pytest.mark.slow
def test_too_wide_page_is_reported(tmp_path, chromium):
    for name, width in dict(wide=500, narrow=300).items():
        (tmp_path/f'{name}.html').write_text(f'<meta name="viewport" content="width=device-width"><div style="width: '
                                             f'{width}px">x</div>')
    assert photograph.names(tmp_path) == ['narrow', 'wide']
    page = chromium.new_page(viewport=dict(width=390, height=900))
    with photograph.served(tmp_path) as url:
        found = {name: (page.goto(f'{url}/{name}.html'), page.evaluate(photograph.TOO_WIDE))[1]
                 for name in photograph.names(tmp_path)}
    page.close()
    assert found == dict(narrow=False, wide=True)


@pytest.mark.slow
def test_formulas_are_rendered(site):
    pages = {p.name: p.read_text(encoding='utf-8') for p in site.glob('*.html')}
    assert pages['13_loss.html'].count('<math') >= 9 and 'class="formula"' in pages['13_loss.html']
    assert not [name for name, text in pages.items() if 'class="arithmatex"' in text], 'TeX that is not rendered'
