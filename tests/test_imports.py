"""A memory mechanism of one's own in every command: `--import`, its copy in the run, and its errors."""
import json
import os
import pytest
import shutil
import subprocess
import sys
import torch
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from lab import free_port
from memory_vlm.cli import main
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.memory import UPDATES
from memory_vlm.schema import schema_fields
from memory_vlm.training.run_dir import find_run, open_trained
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEAKY = '''
import torch
from memory_vlm.memory import MemoryUpdate, memory_update
from rates import RATE
from torch import nn

@memory_update('leaky')
class LeakyUpdate(MemoryUpdate):
    def __init__(self, dim, num_heads, alpha):
        super().__init__(dim, num_heads, alpha)
        self.rate = nn.Parameter(torch.full((dim,), RATE))
    def post_block(self, memory, written): return torch.lerp(memory, written, self.rate)
'''
TINY = ['--config-name=quickstart', 'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny',
        'model.embed_dim=32', 'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1',
        'training.logging.tensorboard=false', 'training.batch_size=8', 'training.epochs=4',
        'training.preflight=false', 'training.data.num_workers=0', 'training.data.persistent_workers=false',
        'training.data.prefetch_factor=null',
        'model.memory.memory_update=leaky', 'training.logging.name=leaky']


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty folder with leaky.py; afterwards the mechanism is forgotten."
    monkeypatch.chdir(tmp_path)
    Path('leaky.py').write_text(LEAKY)
    Path('rates.py').write_text('RATE = .5')
    yield tmp_path
    UPDATES.pop('leaky', None)
    choices = schema_fields()['model.memory.memory_update'].metadata['choices']
    if 'leaky' in choices: choices.remove('leaky')
    from memory_vlm import imports
    imports._active = []


def run(*words):
    "Exit status, output and errors of a command."
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try: status = main(words)
        except SystemExit as e: status = e.code or 0
    return status, out.getvalue(), err.getvalue()


def forget():
    "Forget the mechanism, as a new process does."
    from memory_vlm import imports
    UPDATES.pop('leaky', None)
    schema_fields()['model.memory.memory_update'].metadata['choices'].remove('leaky')
    imports._active = []


def test_a_run_keeps_its_code(place):
    assert 'after --import FILE' in run('fit', *TINY)[2]
    assert run('fit', '--import', 'leaky.py', *TINY, 'training.max_steps=2')[0] == 0
    folder = find_run('runs/leaky')
    record = json.loads((folder/'imports/imports.json').read_text())
    assert set(record[0]['sha256']) == {'leaky.py', 'rates.py'}
    forget()
    rate = open_trained('runs/leaky').model.visual.blocks[0].update.rate
    assert (rate - .5).abs().max() < .1
    Path('rates.py').write_text('RATE = .1') # edited since
    forget()
    with pytest.warns(UserWarning, match='the copy is used'): open_trained(folder)
    forget()
    status, out, _ = run('fit', *TINY, 'training.max_steps=4', f'training.resume={folder}') # without --import
    assert status == 0 and 'Extended from 2 to 4 steps' in out
    forget()
    with pytest.warns(UserWarning, match='the copy is used'): # with the edited original
        assert run('fit', '--import', 'leaky.py', *TINY, 'training.max_steps=6', f'training.resume={folder}')[0] == 0
    assert 'imports:\n  - leaky.py' in (folder/'config.yaml').read_text()
    forget()
    Path('leaky.py').unlink() # as on another machine
    shutil.move(folder, 'elsewhere')
    assert run('ablate', 'elsewhere', '--json')[0] == 0
    assert run('export', 'elsewhere', 'exported', '--no-look')[0] == 0
    assert not list(Path('exported').rglob('imports.json'))
    forget()
    with pytest.raises(UserError, match='after --import FILE'): open_trained('exported') # does not execute the code
    assert 'leaky' not in UPDATES
    assert run('eval', 'exported', 'scenes:tiny', '--import', 'exported/imports/leaky/leaky.py')[0] == 0


def test_two_versions_of_a_mechanism(place):
    "Runs with different versions of one file are opened one after the other."
    for rate in (.25, .75):
        Path('rates.py').write_text(f'RATE = {rate}')
        words = [f'training.run_dir=run{rate}', 'training.max_steps=1', 'training.learning_rate=0', '--import=leaky.py']
        assert run('fit', *TINY, *words)[0] == 0
    for rate in (.25, .75, .25):
        Path('rates.py').write_text(f'RATE = {rate}')
        model = open_trained(f'run{rate}').model
        fresh = UPDATES['leaky'](4, 2, .5)
        assert torch.equal(fresh.rate, torch.full((4,), rate)) and model.visual.blocks[0].update.rate[0] == rate


@pytest.mark.parametrize('old, new, expected', [
    ('def post_block', 'def post_blok', 'did you mean post_block?'),
    ('(self, memory, written): return', '(self, memory): return', 'post_block must take (self, memory, written)'),
    ('torch.lerp(memory, written, self.rate)', 'written.mean(0)', 'LeakyUpdate.post_block must return memory of shape'),
    ('torch.lerp(memory, written, self.rate)', 'written @ memory', 'LeakyUpdate.post_block failed: RuntimeError'),
    ('nn.Parameter', 'nn.Paramter', 'LeakyUpdate.__init__ failed: AttributeError'),
    ('(MemoryUpdate)', '', 'must be a subclass of memory_vlm.memory.MemoryUpdate'),
    ("'leaky'", "'gated'", 'has the name of a built-in mechanism')])
def test_mistakes_name_the_mechanism_and_the_method(place, old, new, expected):
    Path('leaky.py').write_text(LEAKY.replace(old, new))
    status, _, err = run('check', '.', '--import', 'leaky.py')
    if 'LeakyUpdate.' in expected: # called, as in the first step
        memory = torch.zeros(2, 3, 8)
        with pytest.raises(UserError) as said: UPDATES['leaky'](8, 2, .5).post_block(memory, memory)
        status, err = 2, str(said.value)
    assert status == 2 and expected in err and len(err.strip().splitlines()) == 1
    assert 'the memory mechanism' in err


def test_a_study_records_the_code_and_compose_reads_it(place):
    Path('spec.yaml').write_text('variants: {leaky: [model.memory.memory_update=leaky, training.max_steps=1]}\n'
                                 f'seeds: 1\nbase: {json.dumps(TINY[1:-2])}\n')
    assert run('study', 'spec.yaml', '--import', 'leaky.py')[0] == 0
    forget()
    assert run('study', 'runs/spec')[0] == 0 # reads a finished run
    forget()
    assert compose(['training.imports=[leaky.py]', 'model.memory.memory_update=leaky']).training.imports == ['leaky.py']


@pytest.mark.slow
def test_ranks_and_workers_import_it(place):
    words = [*TINY, 'training.max_steps=2', 'training.data.num_workers=1', 'training.preflight=true',
             'training.data.prefetch_factor=2', '--import=leaky.py']
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port',
                           str(free_port()), str(ROOT/'train.py'), *words], env=os.environ | dict(PYTHONPATH=str(ROOT)),
                          timeout=300, capture_output=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr[-2000:]
    assert (find_run('runs/leaky')/'imports/leaky/leaky.py').exists()
