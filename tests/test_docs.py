"The documentation site: every link leads somewhere, and pages fit a phone and a desk, by day and by night."
import functools, http.server, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import docs

SHOWN = ('index', 'benchmarks', 'explain/configuration', 'explain/other_tools', 'tutorials/3_ablate', '31_retrieval', '61_widgets.explorer')


class Links(HTMLParser):
    "What a page points at, and what can be pointed at in it."
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


@pytest.mark.slow
def test_links_lead_somewhere(site):
    pages = {p: read(p) for p in site.rglob('*.html') if p.name != '404.html'}
    assert len(pages) == len(docs.pages()) + 1
    broken = []
    for page, links in pages.items():
        for link in links.to:
            url = urlsplit(link)
            if url.scheme in ('http', 'https', 'data', 'mailto', 'javascript'): continue
            target = (page.parent/unquote(url.path)).resolve() if url.path else page
            if not target.exists(): broken.append(f'{page.relative_to(site)}: {link}')
            elif url.fragment and target in pages and url.fragment not in pages[target].anchors: broken.append(f'{page.relative_to(site)}: {link}')
    assert not broken, broken[:20]


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    outside = {tag for p in site.rglob('*.html') for tag in read(p).to if tag.startswith(('http:', 'https:', '//')) and tag.endswith(('.js', '.css', 'shim', '.woff2'))}
    assert not outside, outside


@pytest.mark.slow
def test_reference_knows_every_public_name(site):
    page = (site/'31_retrieval.html').read_text(encoding='utf-8')
    for name in ('rank_of_best', 'retrieval_ranks', 'chance_recall', 'bootstrap_interval'): assert f'id="{name}"' in page, name
    assert 'Share of draws inside the interval, 0..1' in page and '1000' in page


@pytest.mark.slow
@pytest.mark.parametrize('width,scheme', [(1280, 'light'), (390, 'dark')])
def test_pages_fit(site, chromium, width, scheme):
    handler = functools.partial(type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None)), directory=site)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page, failures = chromium.new_page(viewport=dict(width=width, height=900), color_scheme=scheme), []
    page.on('pageerror', lambda e: failures.append(str(e)))
    try:
        for name in SHOWN:
            page.goto(f'http://127.0.0.1:{server.server_port}/{name}.html', wait_until='networkidle')
            assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), (name, width)
            assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth)'), name
    finally:
        page.close()
        server.shutdown()
    assert not failures, failures
