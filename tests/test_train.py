"""`python train.py` as a person uses it: in a process of its own, from the root of the repository."""
import pandas as pd
import pytest
import signal
import subprocess
import sys
import time
import torch
import warnings
from memory_vlm import cli, run
from memory_vlm.config import compose
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
TINY = ['--config-name=quickstart', 'training.batch_size=16', 'training.data.train_path=scenes:tiny',
        'training.data.val_path=scenes:tiny']


def train(*args, **kwargs):
    "Run train.py to its end."
    return subprocess.run([sys.executable, 'train.py', *args], cwd=ROOT, capture_output=True, encoding='utf-8',
                          **kwargs)


MISTAKES = {
    'training.epoch=3': "did you mean 'training.epochs'?",
    'training.epochs=many': "training.epochs='many' must be an integer",
    'model.memory.mem_alpha=2': 'model.memory.mem_alpha=2.0 must be at most 1',
    'model.num_heads=7': 'model.embed_dim=512 is not a multiple of model.num_heads=7',
    'model.image_size=225': 'model.image_size=225 is not a multiple of model.patch_size=16',
    'training.data.image_size=96': 'training.data.image_size=96 disagrees with model.image_size=224',
    'model.memory.memory_update=attenion': "did you mean 'attention'?",
    'training.optimizer=adamww': "did you mean 'adamw'?",
    'training.optimizer_kwargs.beta=0.9': "did you mean 'betas'?",
    'training.scheduler=cosin': "did you mean 'cosine'?",
    'training.scheduler_kwargs.warmup=1': "did you mean 'warmup_epochs'?",
    'model=tinny': "did you mean 'tiny'?",
    '--config-name=quickstrat': "did you mean 'quickstart'?",
    'experiment=scenes_eazy': "did you mean 'scenes_easy'?",
    'model.memory.memory_position=kv': 'never a query',
}


@pytest.mark.parametrize('mistake', [pytest.param(m, marks=() if i in (0, 3, 7) else pytest.mark.slow) for i,
                                     m in enumerate(MISTAKES)])
def test_config_error_prints_one_line_and_status_2(mistake):
    done = train(mistake)
    assert done.returncode == 2
    lines = [l for l in done.stderr.splitlines() if not l.startswith('Not built yet')]
    assert len(lines) == 1 and MISTAKES[mistake] in lines[0], done.stderr


def test_missing_data_names_the_key_and_the_fix():
    done = train('training.data.train_path=nowhere/at/all')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    for words in ('training.data.train_path', 'nowhere/at/all', "the built-in data set 'scenes'"):
        assert words in done.stderr


def test_internal_error_keeps_its_traceback():
    code = ("import runpy, memory_vlm.run as run; run.fit = lambda cfg: 1 / 0; runpy.run_path('train.py', "
            "run_name='__main__')")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8')
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr and 'Traceback' in done.stderr


def test_run_writes_only_its_folder(tmp_path):
    before = set(ROOT.iterdir())
    done = train(*TINY, 'training.max_steps=3', f'training.run_dir={tmp_path}/run')
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'run').iterdir()} == {'config.yaml', 'metrics.csv', 'report.html',
                                                            'checkpoints', 'tensorboard', 'DONE'}
    assert pd.read_csv(tmp_path/'run'/'metrics.csv')['i2t/R@1'].notna().any()
    assert set(ROOT.iterdir()) - before <= {ROOT/'runs'}


def test_interrupt_saves_and_ends_the_run(tmp_path):
    run = tmp_path/'run'
    process = subprocess.Popen([sys.executable, 'train.py', *TINY, 'training.epochs=500',
                                'training.logging.log_interval=1',
                                f'training.run_dir={run}'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                encoding='utf-8')
    for _ in range(600): # until it has taken a few steps
        if (run/'metrics.csv').exists() and len((run/'metrics.csv').read_text().splitlines()) > 3: break
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert 'Interrupted after' in out and 'Traceback' not in err
    assert (run/'report.html').exists() and not (run/'DONE').exists()
    assert len(list((run/'checkpoints').iterdir())) >= 1


COMMANDS = [['training.epochs=50', 'model.memory.num_memory_tokens=128'],
        ['training.optimizer_kwargs.betas=[0.9, 0.995]'],
            ['--config-name=training', 'model=large'], ['training.batch_size=2', 'training.epochs=1']]


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_the_commands_of_the_guide_take_two_steps(command, tmp_path):
    done = train(*command, 'data=scenes', 'training.max_steps=2', 'training.batch_size=2',
                 'training.data.num_workers=0', 'training.data.prefetch_factor=2',
                 'training.data.persistent_workers=false', 'training.data.val_path=scenes:tiny',
                 'training.checkpoint.save_top_k=0', 'training.checkpoint.save_last=false',
                 f'training.run_dir={tmp_path}/run')
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path/'run'/'metrics.csv').step.max() == 2


def test_slow_report_says_what_the_fit_waits_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, '_REPORT_SECONDS', .01)
    monkeypatch.setattr(run, 'write_report_page', lambda *args, **kwargs: time.sleep(.3))
    source = SimpleNamespace(source=range(40))
    for memory, lines in ((True, 1), (False, 0)):
        cfg = compose([f'model.memory.enabled={memory}'], config_name='quickstart')
        dls = SimpleNamespace(valid=source, device=torch.device('cpu'))
        learn = SimpleNamespace(interrupted=False, cfg=cfg, dls=dls)
        run._write_report(tmp_path, learn, SimpleNamespace(shows=False))
        assert capsys.readouterr().out.count('Measuring what memory does on 40 images, for the report\n') == lines


def test_warnings_of_train_py_are_their_message_alone(monkeypatch, capsys, tmp_path):
    def task(cfg): print(warnings.formatwarning('left out: 3 images', UserWarning, __file__, 1), end='')
    monkeypatch.setattr(cli, 'fit_task', task)
    monkeypatch.chdir(tmp_path)
    cli.fit_main(['--config-name=quickstart'])
    assert capsys.readouterr().out == 'left out: 3 images\n'
