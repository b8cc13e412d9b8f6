"""Save screenshots of the pages of _docs/ at desktop and phone width, in the light and the dark scheme.

    python tools/docs.py && python tools/photograph.py FOLDER
    python tools/photograph.py FOLDER index benchmarks     # some pages

Writes FOLDER/PAGE-WIDTH-SCHEME.png, at most four screens high, and says which pages are wider than their screen."""
import functools
import http.server
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tests'))
from lab import browser

SCREENS = [(1280, 'light'), (1280, 'dark'), (390, 'light'), (390, 'dark')] # width in pixels, color scheme
TOO_WIDE = 'document.documentElement.scrollWidth > innerWidth'


@contextmanager
def served(folder):
    "Serve a folder on localhost during a `with` block."
    quiet = type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally: server.shutdown()


def names(site):
    "Return every page of a site, such as 'tutorials/3_ablate'."
    return sorted(str(p.relative_to(site).with_suffix('')) for p in Path(site).rglob('*.html') if p.name != '404.html')


def photograph(site, folder, pages):
    "Save an image of each page on each screen. Return the pages that are wider than a screen."
    wide, (site, folder) = [], map(Path, (site, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with served(site) as url, browser() as chromium:
        for width, scheme in SCREENS:
            page = chromium.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
            for name in pages:
                page.goto(f'{url}/{name}.html', wait_until='networkidle')
                if page.evaluate(TOO_WIDE): wide.append(f'{name} at {width}')
                height = min(3600, page.evaluate('document.documentElement.scrollHeight'))
                # a full-page image would scroll, and the tabs hide then
                page.set_viewport_size(dict(width=width, height=height))
                page.screenshot(path=folder/f"{name.replace('/', '-')}-{width}-{scheme}.png")
                page.set_viewport_size(dict(width=width, height=900))
            page.close()
    return sorted(set(wide))


if __name__ == '__main__':
    if len(sys.argv) < 2: sys.exit(__doc__)
    site, (folder, *pages) = ROOT/'_docs', sys.argv[1:]
    if not site.exists(): sys.exit('there is no _docs/ yet: python tools/docs.py')
    for line in photograph(site, folder, pages or names(site)): print('too wide:', line)
