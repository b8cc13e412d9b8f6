"""Save screenshots of the pages of _docs/ at desktop and phone width, in the light and the dark scheme.

    python tools/docs.py && python tools/photograph.py FOLDER
    python tools/photograph.py FOLDER index benchmarks     # some pages
    python tools/photograph.py --explorer MODEL PHOTO      # the explorer of a model: nbs/images/explorer.png and .json

Writes FOLDER/PAGE-WIDTH-SCHEME.png, at most four screens high, and says which pages are wider than their screen.

The screenshot in the README and the explorer on the start page of the site show CLIP ViT-B/16 (OpenAI) on
scikit-image's photo of Eileen Collins, which is in the public domain (NASA): MODEL is a file of its image tower for
open_clip, or anything that `as_model` takes."""
import functools
import http.server
import json
import sys
import tempfile
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
    found = (p.relative_to(site) for p in Path(site).rglob('*.html') if p.name != '404.html')
    return sorted(str(p.with_suffix('')) for p in found if p.parts[0] != 'images') # the explorer inside the start page


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


def open_tower(name):
    "Open a model: a safetensors file of the image tower of ViT-B-16-quickgelu, or anything that `as_model` takes."
    import open_clip
    from memory_vlm.training.run_dir import as_model
    from safetensors.torch import load_file
    if not str(name).endswith('.safetensors'): return as_model(name).model
    tower = open_clip.create_model('ViT-B-16-quickgelu').visual
    tower.load_state_dict({k.removeprefix('visual.'): v for k, v in load_file(name).items()})
    return tower.eval()


def photograph_explorer(model, photo, path, **state):
    "Save an image of the explorer of a model on a photo, with 256 colors, and beside it the content of its page."
    from memory_vlm.widgets import AttentionExplorer
    from PIL import Image
    explorer = AttentionExplorer(open_tower(model), [Image.open(photo).convert('RGB')], names=('CLIP ViT-B/16', ''))
    explorer.images.attribution = 'Photo of Eileen Collins: NASA, public domain.'
    explorer.state = dict(layer=-2, opacity=0.9) | state
    content = explorer._page_content(max_kb=120) # without memory, with 197 tokens
    path.with_suffix('.json').write_text(json.dumps(content) + '\n', encoding='utf-8') # tools/docs.py makes the page
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        page = chromium.new_page(viewport=dict(width=1200, height=1000))
        page.goto(Path(explorer.export_html(f'{folder}/explorer.html', max_kb=40_000)).as_uri()) # with all heads
        page.wait_for_selector('.mvlm-x[aria-busy=false]')
        page.evaluate("document.querySelectorAll('h1, main > p, footer, .below, .note').forEach(e => e.remove())")
        page.wait_for_timeout(1000)
        page.locator('.mvlm-x').screenshot(path=path)
    Image.open(path).convert('RGB').quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == '__main__':
    if len(sys.argv) < 2: sys.exit(__doc__)
    if sys.argv[1] == '--explorer': sys.exit(photograph_explorer(*sys.argv[2:], ROOT/'nbs/images/explorer.png'))
    site, (folder, *pages) = ROOT/'_docs', sys.argv[1:]
    if not site.exists(): sys.exit('there is no _docs/ yet: python tools/docs.py')
    for line in photograph(site, folder, pages or names(site)): print('too wide:', line)
