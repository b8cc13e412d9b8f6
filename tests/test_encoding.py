"Files and output do not depend on the locale, and a closed pipe ends a command without a message."
import json
import os
import pytest
import re
import subprocess
import sys
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

def test_text_files_name_their_encoding():
    calls = re.compile(r'\.(?:read|write)_text\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)')
    bare = [f'{p.name}: {c}' for p in (ROOT/'memory_vlm').rglob('*.py')
            for c in calls.findall(p.read_text(encoding='utf-8'))
            if 'encoding' not in c]
    assert not bare, bare

def test_ascii_stdout_takes_any_character():
    code = ("import memory_vlm.cli as c\nclass X: help, failed = '\\u00e9', 2\nc.COMMANDS = dict(x=X)\nassert "
            "c.main(['--help']) == 0")
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'ascii'}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, encoding='utf-8')
    assert done.returncode == 0 and '\\xe9' in done.stdout, done.stderr

@pytest.mark.parametrize('words', ['config', 'eval --help', '--help', 'fit --help'])
def test_a_closed_pipe_ends_a_command_without_a_message(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, '-m', 'memory_vlm', *words.split()], stdout=writer, stderr=subprocess.PIPE,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': ''}, encoding='utf-8')
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, '')

@pytest.mark.slow
def test_fit_report_and_eval_succeed_in_an_ascii_locale_with_other_names(tmp_path):
    folder = tmp_path/'Käse'
    folder.mkdir()
    for i in range(24):
        Image.new('RGB', (16, 16), (9 * i, 0, 0)).save(folder/f'é{i}.jpg')
        (folder/f'é{i}.txt').write_text(f'猫 №{i}', encoding='utf-8')
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': str(ROOT)}
    def run(*words):
        done = subprocess.run([sys.executable, '-m', 'memory_vlm', *words], env=env, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr.decode('utf-8', 'replace')
    run('fit', '--config-name=quickstart', 'training.data.train_path=Käse', 'training.data.val_path=',
        'training.max_steps=2', 'training.batch_size=8', 'model.depth=1', 'training.run_dir=runs/ä')
    assert (tmp_path/'runs'/'ä'/'DONE').exists()
    page = (tmp_path/'runs'/'ä'/'report.html').read_text(encoding='utf-8')
    assert json.dumps('猫 №')[1:-1] in page # in the data of a script
    run('eval', 'runs/ä', 'Käse', '--out', 'é.md')
    run('check', 'Käse')
    assert 'runs/ä' in (tmp_path/'é.md').read_text(encoding='utf-8')
