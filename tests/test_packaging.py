"""The package's metadata says one thing once, and what is installed works away from this repository."""
import ast, os, re, subprocess, sys, tomllib, venv, zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def settings():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

@pytest.fixture(scope='module')
def pyproject(): return tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))

def distribution(requirement):
    "The normalised name a requirement is for: 'Open_clip_torch>=3.0' -> 'open-clip-torch'."
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()

def run(*command, **kwargs):
    "Run a command; its output, or a failed test that shows it."
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
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

def test_torch_is_not_pinned(settings):
    for line in settings['requirements'].split():
        if distribution(line) in ('torch', 'torchvision'):
            assert re.fullmatch(r'[a-z]+>=[\d.]+', line), f'{line}: give torch and torchvision a lower bound only'

def imported(path):
    "Top-level names of what a module imports, inside functions and through `need` too."
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
    "A wheel, built from an sdist, built from this clone: so both have all they need."
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

@pytest.mark.slow
def test_wheel_composes_a_config_elsewhere(wheel, tmp_path):
    venv.create(tmp_path/'env', with_pip=False)
    python = tmp_path/'env/bin/python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel)
    # The rest is borrowed from this environment, whose own .pth files (an editable install) stay unread.
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'))
    (site/'borrowed.pth').write_text('\n'.join(p for p in sys.path if p.endswith('-packages')))
    code = ('import memory_vlm.config as c; cfg = c.compose(["training.epochs=3"], config_name="quickstart"); '
            'print(c.config_dir(), cfg.training.epochs, sep="\\n")')
    clean = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    assert run(python, '-c', code, cwd=tmp_path, env=clean).splitlines() == [str(site/'memory_vlm/configs'), '3']
