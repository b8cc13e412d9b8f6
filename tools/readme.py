"""Write README.md from nbs/index.ipynb, without quarto.

    python tools/readme.py

Markdown cells are copied, with links made relative to the top of the repository; code cells become fenced Python with
their text output under them. Cells with `#| hide` stay out."""
import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n'
LINK = re.compile(r'(\]\(|\b(?:src|href)=")([^)"\s]+)')

def from_top(match):
    "Rewrite a link relative to nbs/ as relative to the repository root."
    start, target = match.groups()
    if re.match(r'[a-z]+:|#|/', target): return match[0]
    return start + posixpath.normpath(posixpath.join('nbs', target))

def text_of(output):
    "Return the text of an output; empty for an image (the README shows images from files)."
    if any(kind.startswith('image/') for kind in output.get('data', {})): return ''
    return ''.join(output.get('text', output.get('data', {}).get('text/plain', ''))).rstrip()

def block(cell):
    "Convert one cell to Markdown."
    source = ''.join(cell['source'])
    if re.search(r'^#\| *hide', source, flags=re.M) or not source.strip(): return ''
    if cell['cell_type'] == 'markdown': return LINK.sub(from_top, source)
    if cell['cell_type'] != 'code': return ''
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
    shown = '\n'.join(filter(None, map(text_of, cell['outputs'])))
    return f'```python\n{code}\n```' + (f'\n\n```text\n{shown}\n```' if shown else '')

def readme_text(notebook):
    "Return the README as one string."
    cells = json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']
    return HEADER + '\n\n'.join(filter(None, map(block, cells))) + '\n'

if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme_text(ROOT/'nbs/index.ipynb'), encoding='utf-8')
    print('README.md is up to date with nbs/index.ipynb.')
