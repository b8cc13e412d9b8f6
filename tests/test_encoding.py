"Files and output do not depend on the locale."
import os
import re
import subprocess
import sys
from pathlib import Path

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
