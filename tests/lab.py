"""JupyterLab in a headless Chromium, driven by mouse and keyboard."""
import json
import nbformat
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def browser():
    "Start Chromium with Playwright."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Lab:
    "Start a JupyterLab server in its own folder, isolated from the user's settings."
    def __init__(self, folder:Path):
        self.folder, port = folder/'work', free_port()
        self.folder.mkdir()
        settings = folder/'settings'/'@jupyterlab'
        (settings/'notebook-extension').mkdir(parents=True)
        (settings/'apputils-extension').mkdir()
        # every cell is in the page
        (settings/'notebook-extension'/'tracker.jupyterlab-settings').write_text('{"windowingMode": "none"}')
        (settings/'apputils-extension'/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", '
                '"checkForUpdates": false}')
        self.themes = settings/'apputils-extension'/'themes.jupyterlab-settings'
        own = {f'JUPYTER{name}_DIR': str(folder/name.lower())
               for name in ('_CONFIG', '_DATA', '_RUNTIME', 'LAB_WORKSPACES')}
        env = os.environ | own | dict(JUPYTERLAB_SETTINGS_DIR=str(folder/'settings'), IPYTHONDIR=str(folder/'ipython'),
                                      OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', IN_TEST='1')
        self.url = f'http://127.0.0.1:{port}'
        self.log = open(folder/'log', 'w', encoding='utf-8')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}',
             '--ServerApp.port_retries=0',
             '--IdentityProvider.token=', f'--ServerApp.root_dir={self.folder}', '--LabApp.expose_app_in_browser=True'],
            env=env, stdout=self.log, stderr=self.log)
        for _ in range(300):
            try: return urlopen(f'{self.url}/api').close()
            except OSError: time.sleep(0.2)
            if self.process.poll() is not None: break
        raise RuntimeError((folder/'log').read_text())

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def theme(self, dark:bool):
        self.themes.write_text(json.dumps(dict(theme='JupyterLab Dark' if dark else 'JupyterLab Light')))

    def write(self, name, *cells):
        "Write a notebook with these code cells."
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nb.metadata.kernelspec = dict(display_name='python3', language='python', name='python3')
        nbformat.write(nb, self.folder/name)
        return name

    def open(self, page, name):
        "Open a notebook in a page, and wait for its kernel."
        page.goto(f'{self.url}/doc/tree/{name}')
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status "
                               "=== 'idle'", timeout=60_000)
        return Notebook(page)


class Notebook:
    "A notebook open in a page."
    APP = 'const app = window.jupyterapp, panel = app.shell.currentWidget;'

    def __init__(self, page): self.page = page

    def js(self, code, arg=None): return self.page.evaluate('async (arg) => { ' + self.APP + code + ' }', arg)

    def start(self):
        "Start running all cells."
        self.js("window.ran = false; app.commands.execute('notebook:run-all-cells').then(() => { window.ran = true; "
                "});")
    def finish(self, seconds=120):
        "Wait until all cells have run; fail if one failed."
        self.page.wait_for_function('() => window.ran', timeout=seconds * 1000)
        errors = [f"cell {i}: {o['ename']}: {o['evalue']}" for i, outputs in enumerate(self.outputs())
                  for o in outputs if o['output_type'] == 'error']
        assert not errors, errors
    def run(self, seconds=120):
        self.start()
        self.finish(seconds)

    def outputs(self):
        "Return the outputs of each cell as in the notebook file."
        return self.js('return panel.content.widgets.map(c => c.model.type === "code" ? c.model.outputs.toJSON() : '
                       '[]);')

    def cell(self, i): return self.page.locator('.jp-Notebook .jp-Cell').nth(i)

    def ask(self, expression):
        "Return the value of an expression in the kernel, once it is idle."
        return json.loads(self.js("""
            const code = `import json; print(json.dumps(${arg}))`;
            const future = panel.sessionContext.session.kernel.requestExecute({code, store_history: false});
            let text = '';
            future.onIOPub = (m) => {
                text += m.content.text ?? (m.content.ename ? JSON.stringify(m.content.evalue) : '');
            };
            await future.done;
            return text;""", expression))
