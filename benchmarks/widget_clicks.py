"""How long a click in `AttentionExplorer` takes to show in a real JupyterLab: patch, token, layer, head and image.

    python benchmarks/widget_clicks.py                                  # the quickstart's model, 20 clicks of each kind
    python benchmarks/widget_clicks.py --csv benchmarks/results/widget_clicks.csv

A headless Chromium drives the page. Time is measured in the page, from the click event to the last change of the
output. Median and 90th percentile over the clicks; an image selected for the first time is run through the model. """
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from lab import Lab, browser
from results import machine, store

SETUP = """
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.widgets import AttentionExplorer
learn = make_learner(compose(config_name='quickstart'))
explorer = AttentionExplorer(learn)
explorer
"""
# Which control, and what to do there with a number i
KINDS = dict(
    patch=('.frame canvas', "const b = e.getBoundingClientRect(); e.dispatchEvent(new MouseEvent('click', "
                            "{bubbles: true, clientX: b.left + (i * 29) % b.width, clientY: b.top + (i * 53) % "
                            "b.height}));"),
    token=('.choice.token select',
           "e.selectedIndex = 1 + i % 8; e.dispatchEvent(new Event('change', {bubbles: true}));"),
    head=('.choice.head select', "e.selectedIndex = i % 5; e.dispatchEvent(new Event('change', {bubbles: true}));"),
    image=('.gallery input', "e.value = i + 1; e.dispatchEvent(new Event('change', {bubbles: true}));"))


def clicks(page, kind, count):
    "Seconds from each click to the last change of the widget's text and images that it causes."
    where, act = KINDS[kind]
    handle = page.locator('.jp-OutputArea-output').locator(where).first.element_handle()
    return [page.evaluate(f"""async ([e, i]) => {{
        let last = NaN;
        const watch = new MutationObserver(found => {{
            if (found.some(m => m.attributeName === 'src' || m.type === 'childList')) last = performance.now();
        }});
        watch.observe(e.closest('.jp-OutputArea-output'), {{subtree: true, childList: true, attributes: true,
                                                            attributeFilter: ['src']}});
        const start = performance.now();
        {act}
        await new Promise(r => setTimeout(r, 1500));
        watch.disconnect();
        return (last - start) / 1000;
    }}""", [handle, i]) for i in range(1, count + 1)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--count', type=int, default=20, help='clicks of each kind')
    p.add_argument('--csv', help='append the results to this file')
    args, rows = p.parse_args(), []
    with browser() as chromium, tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        try:
            page = chromium.new_page(viewport=dict(width=1200, height=900))
            nb = lab.open(page, lab.write('click.ipynb', SETUP))
            nb.run(300)
            page.wait_for_timeout(1000)
            print(machine())
            for kind in KINDS:
                took = [t for t in clicks(page, kind, args.count) if t == t]
                median, slow = statistics.median(took), statistics.quantiles(took, n=10)[-1]
                rows.append(dict(click=kind, median_ms=round(median * 1e3), p90_ms=round(slow * 1e3), clicks=len(took)))
                print(f'{kind:8} {median * 1e3:5.0f} ms, nine of ten within {slow * 1e3:5.0f} ms  ({len(took)} of '
                      f'{args.count} clicks changed something)')
        finally: lab.close()
    if args.csv: store(args.csv, rows)


if __name__ == '__main__': main()
