"""Package metadata is consistent, and the installed package works outside this repository."""
import ast
import json
import os
import pytest
import re
import subprocess
import sys
import tomllib
import venv
import yaml
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from memory_vlm.core import UserError
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def settings():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

@pytest.fixture(scope='module')
def pyproject(): return tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))

def distribution(requirement):
    "Return the normalized name of a requirement: 'Open_clip_torch>=3.0' -> 'open-clip-torch'."
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()

def run(*command, **kwargs):
    "Run a command and return its output; fail the test with the output on error."
    done = subprocess.run([str(c) for c in command], capture_output=True, encoding='utf-8', **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()

def test_pyproject_repeats_settings(settings, pyproject):
    project = pyproject['project']
    assert project['name'] == settings['lib_name']
    assert project['description'] == settings['description']
    assert project['requires-python'] == f">={settings['min_python']}"
    assert pyproject['tool']['nbdev']['lib_path'] == settings['lib_path']
    said = set(project) - {'name', 'description', 'requires-python', 'dynamic'}
    assert not said, f'settings.ini is the place for {said}'

def test_version_of_the_package(settings):
    import memory_vlm
    assert memory_vlm.__version__ == settings['version']

def test_citation_repeats_settings(settings):
    cited = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert [cited[k] for k in ('version', 'license')] == [settings[k] for k in ('version', 'license')]
    assert cited['authors'] == [{'name': settings['author']}]

def test_workflow_covers_the_oldest_python(settings):
    jobs = yaml.safe_load((ROOT/'.github/workflows/test.yml').read_text(encoding='utf-8'))['jobs']
    assert jobs['quick']['strategy']['matrix']['python'][0] == settings['min_python']
    made = set(re.findall(r'^([\w-]+):', (ROOT/'Makefile').read_text(encoding='utf-8'), flags=re.M))
    used = {step['run'].split()[1] for job in jobs.values() for step in job['steps']
            if step.get('run', '').startswith('make ')}
    assert used and used <= made, used - made

def test_torch_is_not_pinned(settings):
    for line in settings['requirements'].split():
        if distribution(line) in ('torch', 'torchvision'):
            assert re.fullmatch(r'[a-z]+>=[\d.]+', line), f'{line}: give torch and torchvision a lower bound only'

def imported(path):
    "Return the top-level names that a module imports, also inside functions and through `need`."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'need':
            yield from (a.value.split('.')[0] for a in node.args[:1] if isinstance(a, ast.Constant))

def test_imports_are_declared(settings):
    keys = [key for key in settings if key.endswith('requirements') and key != 'dev_requirements']
    declared = {distribution(line) for key in keys for line in settings[key].strip().splitlines()}
    provides = packages_distributions()
    paths = [*ROOT.glob('memory_vlm/**/*.py'), ROOT/'train.py']
    missing = {f'{path.relative_to(ROOT)} imports {name}' for path in paths
               for name in set(imported(path)) - set(sys.stdlib_module_names) - {'memory_vlm'}
               if not declared & {distribution(d) for d in provides.get(name, [name])}}
    assert not missing, f'add to the requirements in settings.ini: {sorted(missing)}'

def test_installed_from_this_clone(tmp_path):
    code = 'import memory_vlm.config as c; print(c.__file__, c.config_dir(), sep="\\n")'
    found = run(sys.executable, '-c', code, cwd=tmp_path).splitlines()
    assert found == [str(ROOT/'memory_vlm/config.py'), str(ROOT/'configs')], 'run pip install -e . here'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Build an sdist from this clone and a wheel from the sdist, so both are tested."
    folder = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, ROOT)
    return next(folder.glob('*.whl'))

@pytest.mark.slow
def test_wheel_holds_everything(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = run('git', 'ls-files', 'memory_vlm', 'configs', cwd=ROOT).splitlines()
    wanted = {name if name.startswith('memory_vlm/') else f'memory_vlm/{name}' for name in tracked}
    assert tracked and wanted <= held, sorted(wanted - held)
    stray = {name for name in held - wanted if '.dist-info/' not in name}
    assert not stray, f'not in git: {sorted(stray)}'
    assert {'LICENSE', 'NOTICE'} <= {Path(name).name for name in held}

@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    "Run Python in an environment with the wheel, outside this clone."
    folder = tmp_path_factory.mktemp('elsewhere')
    venv.create(folder/'env', with_pip=False)
    python, clean = folder/'env/bin/python', {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel, env=clean)
    # The rest is borrowed from this environment, whose own .pth files (an editable install) stay unread.
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'))
    (site/'borrowed.pth').write_text('\n'.join(p for p in sys.path if p.endswith('-packages')))
    def runs(code): return run(python, '-c', code, cwd=folder, env=clean)
    runs.site, runs.folder, runs.command = site, folder, [python.with_name('memory_vlm')]
    runs.env = clean
    return runs

@pytest.mark.slow
def test_wheel_composes_a_config_outside_the_clone(elsewhere):
    code = ('import memory_vlm.config as c; cfg = c.compose(["training.epochs=3"], config_name="quickstart"); '
            'print(c.config_dir(), cfg.training.epochs, sep="\\n")')
    assert elsewhere(code).splitlines() == [str(elsewhere.site/'memory_vlm/configs'), '3']

@pytest.mark.slow
def test_wheel_fits_and_exports_outside_the_clone(elsewhere):
    words = ['training.max_steps=1', 'training.batch_size=16', 'training.data.train_path=scenes:tiny',
             'training.data.val_path=scenes:tiny']
    elsewhere('from memory_vlm.config import compose; from memory_vlm.run import fit; from memory_vlm.hub.publish '
              'import share\n'
              f'run = fit(compose({words}, config_name="quickstart")); share(run.folder, "given", to="open_clip", '
              f'look=False)')
    assert elsewhere('import open_clip, memory_vlm.vision\n'
                     'print(open_clip.create_model("local-dir:given").visual.trunk.layout.num_memory)') == '8'

@pytest.mark.slow
def test_command_line_outside_the_clone(elsewhere):
    def shell(*words, status=0):
        done = subprocess.run([*elsewhere.command, *words], cwd=elsewhere.folder, env=elsewhere.env,
                              capture_output=True, encoding='utf-8')
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr
    assert 'memory_vlm fit --config-name=quickstart' in shell('fit', '--help')
    assert yaml.safe_load(shell('config', '--config-name=quickstart',
                                'training.max_steps=2'))['training']['max_steps'] == 2
    words = ['training.max_steps=2', 'training.batch_size=16', 'training.data.train_path=scenes:tiny',
             'training.data.val_path=scenes:tiny']
    shell('fit', '--config-name=quickstart', *words, 'training.run_dir=fitted')
    assert (elsewhere.folder/'fitted'/'DONE').exists()
    assert 'val_loss' in json.loads(shell('report', 'fitted', '--images', '16', '--json').partition('\n}')[0]
                                    + '}')['metrics']
    assert "did you mean 'training.epochs'?" in shell('fit', 'training.epoch=3', status=2)
    told = shell('fit', '-m', 'hydra/launcher=joblib', 'training.seed=0,1', status=2)
    assert ("needed to sweep with hydra/launcher=joblib: pip install 'memory-vlm[sweep]'" in told
            or find_spec('hydra_plugins.hydra_joblib_launcher'))

MISSING = dict( # Extra -> what it brings, what asks for it, and what that is for
    export=('onnx',
            'from memory_vlm.clip import MemoryCLIP; from memory_vlm.config import compose; from memory_vlm.hub.onnx '
            'import export_encoders\n'
            'export_encoders(MemoryCLIP.from_config(compose(["model=tiny", "model.depth=1", '
            '"model.text.depth=1"]).model), "onnx")', 'export to ONNX'),
    data=('webdataset',
          'from memory_vlm.data.sources import open_source; open_source("https://nowhere.invalid/x.tar", "train")',
          'read shards from a URL'),
    map=('umap', 'from memory_vlm.widgets.embedding import _umap_class; _umap_class()', 'project embeddings by UMAP'),
    atlas=('embedding_atlas', 'from memory_vlm.widgets import EmbeddingMap; EmbeddingMap.embedding_atlas(None)',
           'show a map in Embedding Atlas'),
    sweep=('hydra-joblib-launcher', 'from memory_vlm.config import explain_error\n'
           'raise explain_error(ValueError("Could not find \'hydra/launcher/joblib\'"))',
           'sweep with hydra/launcher=joblib'),
    ray=('hydra-ray-launcher', 'from memory_vlm.config import explain_error\n'
         'raise explain_error(ValueError("Could not find \'hydra/launcher/ray\'"))', 'sweep with hydra/launcher=ray'),
    tokenizers=('transformers',
                'from memory_vlm.data.tokenizer import _open_tokenizer; _open_tokenizer("some-org/siglip")',
                'tokenize captions as some-org/siglip does'),
    dev=('mkdocs', 'import runpy; runpy.run_path("tools/docs.py", run_name="__main__")', 'build the documentation'))

def test_every_extra_is_known(settings):
    assert {key.removesuffix('_requirements') for key in settings if key.endswith('_requirements')} == set(MISSING)

@pytest.mark.parametrize('extra', MISSING)
def test_missing_extra_is_one_sentence(extra, monkeypatch):
    package, code, why = MISSING[extra]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, 'argv', ['docs.py'])
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, SystemExit)) as e: exec(code, {})
    assert str(e.value).endswith(f"The package '{package}' is needed to {why}: pip install 'memory-vlm[{extra}]'")
