"""Build the documentation site from the notebooks, without quarto and without running anything.

    python tools/docs.py            # into _docs/; open _docs/index.html, no server needed but for the search

Each notebook becomes a page that keeps its place. Prose and saved outputs are taken over; an exported cell becomes, for
each public name in it, the signature, a table of parameters from the comments beside them, and the source folded away.
Benchmark tables come from benchmarks/results/. The pages are put together by Material for MkDocs, which brings search,
navigation, and both color schemes; nothing is loaded from a network when they are read."""
import ast
import base64
import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
import yaml
from memory_vlm.core import MissingPackage, require
from memory_vlm.widgets.html import maps_page
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(([^)\s]+)\)')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S) # as arithmatex leaves it
# Headings of the reference, with their folders in nbs/ and the first digits of their notebooks at the top of nbs/
SECTIONS = {'Base': (None, '0'), 'Data': ('data', None), 'Models': ('models', '1'), 'Evaluation': ('evaluation', None),
            'Training': ('training', '24'), 'Look inside': ('interp', '3'), 'Visualization': ('viz', None),
            'Widgets': ('widgets', None), 'Export': ('hub', None), 'Command line': (None, '5')}
# Tabs by task, each with the pages of nbs/explain/ that it begins with; other headings are below Reference
TASKS = {'Data': ('data',), 'Models': ('models',), 'Training': ('configuration',),
         'Look inside': ('what_attention_shows',), 'Widgets': (), 'Command line': ('command_line',)}
GUIDES = 'index.md', 'tutorials/', 'explain/' # pages that explain a task: the search lists them first
THEME = dict(name='material', font=False, language='en',
             icon=dict(repo='fontawesome/brands/git-alt', logo='material/grid'),
             features=['navigation.tabs', 'navigation.indexes', 'navigation.top', 'navigation.footer', 'toc.follow',
                       'content.code.copy', 'search.highlight'],
             palette=[dict(media=f'(prefers-color-scheme: {mode})', scheme=scheme, primary='blue gray', accent='blue',
                           toggle=dict(icon=f'material/weather-{icon}', name=f'Go to {other}'))
                      for mode, scheme, icon,
                      other in [('light', 'default', 'sunny', 'dark'), ('dark', 'slate', 'night', 'light')]])
EXTENSIONS = ['admonition', 'attr_list', 'md_in_html', 'tables', 'pymdownx.details', 'pymdownx.superfences',
              {'pymdownx.highlight': dict(use_pygments=True)}, {'pymdownx.arithmatex': dict(generic=True)},
                      {'toc': dict(permalink=True, toc_depth=3)}]
ALONE = '---\nhide: [navigation]\n---\n\n' # above a page that has no neighbors to list beside it
STYLE = '''
.md-typeset table:not([class]) { font-size: .64rem; display: block; overflow-x: auto; max-width: 100%; }
.md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: .6em .8em; }
.md-typeset table:not([class]) code { word-break: normal; }
.md-typeset table:not([class]) td:first-child code { white-space: nowrap; }
.md-typeset img, .md-typeset svg { max-width: 100%; height: auto; }
[data-md-color-scheme="slate"] .md-typeset img[src*="/out/"],
[data-md-color-scheme="slate"] .md-typeset img[src^="out/"] { background: #fff; }
@media (max-width: 45em) { .md-typeset :is(table:not([class]), .output table) td:last-child { min-width: 9rem; } }
.md-typeset .output table { border-collapse: collapse; font-size: .64rem; margin: 1em 0; }
.md-typeset .output :is(th, td) { border: .05rem solid var(--md-typeset-table-color); padding: .4em .8em;
  text-align: right; }
.md-typeset .output { overflow-x: auto; } .md-typeset h3 { margin-top: 2.2em; } .md-grid { max-width: 66rem; }
.md-typeset .formula { display: block; overflow-x: auto; padding: .4em 0; }
'''


def comments(source):
    "Return the comment on each line of a cell."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('#').strip() for t in tokens if t.type == tokenize.COMMENT}


def text_of(node): return '' if node is None else ast.unparse(node)


def parameters(function, notes):
    "Return rows of (name, type, default, description), with None for missing values."
    args, rows = function.args, []
    places = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(places) - len(args.defaults)) + args.defaults
    every = [*zip(places, defaults), *zip(args.kwonlyargs, args.kw_defaults)]
    every += [(a, None) for a in (args.vararg, args.kwarg) if a]
    lines = [a.lineno for a, _ in every]
    for a, default in every:
        if a.arg in ('self', 'cls'): continue
        alone = lines.count(a.lineno) == 1 and a.lineno != function.lineno
        rows.append((a.arg, text_of(a.annotation), text_of(default), notes.get(a.lineno, '') if alone else ''))
    first = function.body[0].lineno
    returned = text_of(function.returns)
    ends = (n for n in range(first - 1, function.lineno - 1, -1) if n in notes and n not in lines)
    note = notes.get(next(ends, None), '') if returned else ''
    if returned and (note or any(r[3] for r in rows)): rows.append(('returns', returned, '', note))
    return rows if any(r[3] for r in rows) else []


def fields_of(cls, notes):
    "Return such rows for the fields of a dataclass."
    found = [n for n in cls.body if isinstance(n, ast.AnnAssign)]
    return [(n.target.id, text_of(n.annotation), text_of(n.value), notes.get(n.end_lineno, '')) for n in found]


def table(rows):
    "Format rows of parameters as a Markdown table."
    if not rows: return ''
    def cell(text, code=True):
        text = text.replace('\n', ' ')
        return f'`{text}`' if code and text else text.replace('|', '\\|').replace('<', '&lt;')
    has_default = any(r[2] for r in rows)
    head = ['name', 'type', *(['default'] if has_default else []), 'what it is']
    lines = [head, ['---'] * len(head)] + [[cell(n), cell(k), *([cell(d)] if has_default else []), cell(w, False)]
                                           for n, k, d, w in rows]
    return '\n'.join(f"| {' | '.join(line)} |" for line in lines)


def signature(function, name):
    "Return the signature of a function as one line, without types if it is long."
    given = function.args
    places = [a for a in [*given.posonlyargs, *given.args] if a.arg not in ('self', 'cls')]
    named = [(a, '') for a in places] + [(given.vararg, '*')] + [(a, '')
                                                                 for a in given.kwonlyargs] + [(given.kwarg, '**')]
    names = [stars + a.arg for a, stars in named if a]
    typed = ast.unparse(ast.arguments([], places, given.vararg, given.kwonlyargs, given.kw_defaults, given.kwarg,
                                      given.defaults))
    call = f'{name}({typed})' + (f' -> {text_of(function.returns)}' if function.returns else '')
    return call if len(call) <= 110 else f"{name}({', '.join(names)})"


def describe(node, notes, name=None, depth=3):
    "Return the reference of one function or class as Markdown blocks."
    is_class, name = isinstance(node, ast.ClassDef), name or node.name
    start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'),
                 None) if is_class else node
    yield f"{'#' * depth} {name.split('.')[-1]}"
    if start: yield f'```python\n{signature(start, name)}\n```'
    elif is_class: yield f"```python\nclass {name}({', '.join(map(text_of, node.bases))})\n```"
    if doc := ast.get_docstring(node): yield doc.replace('<', '&lt;')
    if is_class: yield table(fields_of(node, notes))
    if start: yield table(parameters(start, notes))
    for method in node.body if is_class else ():
        if not isinstance(method, ast.FunctionDef) or method.name.startswith('_'): continue
        if ast.get_docstring(method) or parameters(method, notes):
            yield from describe(method, notes, f'{name}.{method.name}', depth + 1)


def public(source):
    ("The functions and classes of an exported cell, each with the name it is called by; methods that are patched in "
     "bear their class's.")
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        patched = any('patch' in text_of(d) for d in node.decorator_list)
        owner = text_of(node.args.args[0].annotation) if patched and isinstance(node,
                ast.FunctionDef) and node.args.args else ''
        yield node, f'{owner}.{node.name}' if owner else node.name


def fold(source):
    "Return a code block that is folded until clicked."
    return '??? note "Source"\n\n' + '\n'.join('    ' + line for line in f'```python\n{source}\n```'.splitlines())


def output(out, folder, name):
    "Return one output of a cell as Markdown; save images as files."
    data = out.get('data', {})
    for kind, ending in (('image/png', 'png'), ('image/svg+xml', 'svg')):
        if kind in data:
            content = ''.join(data[kind])
            path = folder/'out'/f'{name}.{ending}'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content) if ending == 'png' else content.encode())
            return f'![What the cell above shows](out/{path.name})'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if 'text/html' in data:
        return '<div class="output">' + re.sub(r'\n\s*\n', '\n', ''.join(data['text/html'])) + '</div>'
    text = ''.join(data.get('text/plain', out.get('text', ''))).rstrip()
    return f'```text\n{text}\n```' if text else ''


def inside(match, path):
    "Resolve a link to another notebook or a file in nbs/; turn other relative links into text."
    words, target = match.groups()
    if re.match(r'[a-z]+:|#', target): return match[0]
    file, _, anchor = target.partition('#')
    if not (path.parent/file).resolve().is_relative_to(NBS):
        return words if Path(file).name in words else f'{words} (`{Path(file).name}`)'
    return f"[{words}]({file.replace('.ipynb', '.md')}{'#' + anchor if anchor else ''})"


def page(path, folder):
    "Convert a notebook to Markdown."
    cells, blocks = json.loads(path.read_text(encoding='utf-8'))['cells'], []
    for number, cell in enumerate(cells):
        source = ''.join(cell['source'])
        flags = set(re.findall(r'^#\| *(\w+)', source, flags=re.M))
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if cell['cell_type'] == 'markdown': blocks.append(LINK.sub(lambda m: inside(m, path), source))
        elif flags & {'hide', 'default_exp'} or code in ('', 'from fastcore.test import *'): continue
        elif flags & {'export', 'exporti'}:
            found = list(public(code))
            for node, name in found: blocks += describe(node, comments(code), name)
            if found or not re.match(r'(import|from) ', code): blocks.append(fold(code))
        else:
            if 'echo' not in flags: blocks.append(f'```python\n{code}\n```')
            blocks += [output(o, folder, f'{path.stem}-{number}-{i}') for i, o in enumerate(cell.get('outputs', []))]
    return '\n\n'.join(b for b in blocks if b) + '\n'


def title(path):
    "Return the first heading of a notebook."
    return re.match(r'# (.+)', ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source']))[1]


def figure(text):
    "Format a cell of a CSV; shorten a fraction to four significant digits."
    try: return f'{float(text):.{4 if abs(float(text)) < 1000 else 5}g}' if '.' in text else text
    except ValueError: return text


def benchmarks():
    "Return all tables of benchmarks/results as Markdown, each under the title of its program."
    blocks = ['# Benchmarks',
              'Ratios travel between machines, seconds do not. Each table says what made it, where and when; the '
              'programs are '
              'in `benchmarks/` and print their goals beside their figures. Runs that differ in length or settings '
              'are rows of one table.']
    for path in sorted((ROOT/'benchmarks/results').glob('*.csv')):
        rows = list(csv.DictReader(path.open(newline='', encoding='utf-8')))
        program = ROOT/re.search(r'benchmarks/\w+\.py', rows[0]['command'])[0] if 'command' in rows[0] else None
        said = ast.get_docstring(ast.parse(program.read_text(encoding='utf-8'))) if program and program.exists() else ''
        origin = [k for k in ('command', 'machine', 'date', 'torch') if k in rows[0]]
        several = len({r.get('machine') for r in rows}) > 1
        shown = ['machine'] * several + [k for k in rows[0] if k not in origin]
        blocks.append(f"## {path.stem.replace('_', ' ')}\n\n{said.split(chr(10))[0]}")
        lines = [shown, ['---'] * len(shown)] + [[figure(r[k] or '') for k in shown] for r in rows]
        blocks.append('\n'.join(f"| {' | '.join(line)} |" for line in lines))
        for machine in dict.fromkeys(tuple(r[k] for k in origin) for r in rows):
            words = dict(command='`{}`', torch='torch {}')
            blocks.append(' · '.join(words.get(k, '{}').format(v) for k, v in zip(origin, machine)))
    return '\n\n'.join(blocks) + '\n'


def formula(match):
    "Convert a formula to MathML, which browsers render natively."
    convert, alone = require('latex2mathml.converter', 'build the documentation', extra='dev').convert, match[2] == '['
    drawn = convert(html.unescape(match[3]), display='block' if alone else 'inline')
    return f'<span class="formula">{drawn}</span>' if alone else drawn


def on_page_content(content, **_):
    "MkDocs hook, called for each page."
    return FORMULA.sub(formula, content)


def pages():
    "Return the notebooks that have a page, by their path."
    every = sorted(p for p in NBS.rglob('*.ipynb') if all(part[0] not in '._' for part in p.relative_to(NBS).parts))
    return {p: p.relative_to(NBS).with_suffix('.md') for p in every}


def navigation(found):
    "Return the navigation of the site."
    def entries(paths): return [{title(p): str(found[p])} for p in paths]
    def among(name): return [p for p in found if p.parent.name == name]
    def within(folder, digits):
        return [p for p in found if p.parent == NBS and p.name[0] in (digits or '')] + among(folder)
    guides = {p.stem: p for p in among('explain')}
    tabs = [{name: entries([*(guides.pop(g) for g in first), *within(*SECTIONS[name])])} for name, first in
            TASKS.items()]
    others = [{name: entries(within(*place))} for name, place in SECTIONS.items() if name not in TASKS]
    return [{'Start': 'index.md'}, {'Tutorials': entries(among('tutorials'))}, *tabs,
            {'Explanations': entries(guides.values())}, {'Reference': others}, {'Benchmarks': 'benchmarks.md'}]


def on_page_markdown(markdown, page, **_):
    "Rank the pages of tasks first in the search: a title of the reference counts 1000 times as much as text."
    if page.file.src_uri.startswith(GUIDES): page.meta['search'] = dict(boost=1000)


# The explorer on a photo; tools/photograph.py writes its content
LIVE = ('<p>Try it here: choose a layer or a token. The colored patches in the background are attention sinks.</p>\n'
        '<iframe src="images/explorer.html" title="attention explorer" loading="lazy" '
        'style="width:100%;height:1100px;border:0"></iframe>')


def write(folder):
    "Write all Markdown, images and the configuration of the site."
    docs, found = folder/'docs', pages()
    for path, place in found.items():
        (docs/place).parent.mkdir(parents=True, exist_ok=True)
        text = page(path, (docs/place).parent)
        if path.stem == 'index': text = ALONE + text.replace('</p>', f'</p>\n\n{LIVE}', 1) # below the screenshot
        (docs/place).write_text(text, encoding='utf-8')
    shutil.copytree(NBS/'images', docs/'images', dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.json'))
    maps_page(docs/'images/explorer.html', **json.loads((NBS/'images/explorer.json').read_text(encoding='utf-8')))
    (docs/'benchmarks.md').write_text(ALONE + benchmarks(), encoding='utf-8')
    (docs/'style.css').write_text(STYLE, encoding='utf-8')
    site = dict(site_name='Memory-VLM', docs_dir=str(docs), use_directory_urls=False, theme=THEME,
                nav=navigation(found),
                markdown_extensions=EXTENSIONS, extra_css=['style.css'], plugins=['search'], hooks=[__file__],
                extra=dict(generator=False),
                copyright='Apache 2.0. Drawings: OpenMoji, CC BY-SA 4.0.',
                validation=dict(links=dict.fromkeys(('not_found', 'anchors', 'absolute_links', 'unrecognized_links'),
                                                    'warn'),
                                nav=dict(omitted_files='warn')))
    (folder/'mkdocs.yml').write_text(yaml.safe_dump(site, sort_keys=False))
    return folder/'mkdocs.yml'


def build(site):
    "Write the site to a folder. Return whether every link between its pages resolves."
    with tempfile.TemporaryDirectory() as folder:
        return not subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--strict', '--clean', '-f',
                                   write(Path(folder)), '-d', site],
                                  env=os.environ | dict(NO_MKDOCS_2_WARNING='1')).returncode


if __name__ == '__main__':
    try:
        for name in ('mkdocs', 'latex2mathml'): require(name, 'build the documentation', extra='dev')
    except MissingPackage as e: sys.exit(str(e))
    if not build(ROOT/'_docs'): sys.exit(1)
    print(f'{len(pages()) + 1} pages: open _docs/index.html; for the search, python -m http.server -d _docs')
