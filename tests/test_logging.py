"""Loggers get the figures of the report; one that fails gives a warning, and the fit continues with the others."""
import contextlib
import http.server
import io
import os
import pandas as pd
import pytest
import sys
import threading
import warnings
from memory_vlm.config import compose
from memory_vlm.run import fit
from memory_vlm.training.logging import _WANDB_SECONDS, CSVWriter, MetricLog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from unittest.mock import patch

ONLY_WANDB = ['training.logging.tensorboard=false']
ONLY_CSV = [*ONLY_WANDB, 'training.logging.wandb=false']


@contextlib.contextmanager
def wandb_server(answer):
    "Start a W&B server that accepts connections; `answer` handles each request."
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self): answer(self)
        do_GET = do_POST
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with patch.dict(os.environ, WANDB_API_KEY='x' * 40, WANDB_BASE_URL=f'http://127.0.0.1:{server.server_port}'):
            os.environ.pop('WANDB_MODE', None)
            try: yield
            finally: server.shutdown()


def log_steps(folder, words=ONLY_WANDB, spoil=lambda log: None):
    "Log three steps; return the steps in metrics.csv and the warnings."
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('always')
        log = MetricLog(folder, compose(words))
        spoil(log)
        for step in 1, 2, 3: log.add(step, {'train_loss': 2.5})
        log.close()
    found = [str(w.message) for w in seen if 'could not write' in str(w.message)]
    return pd.read_csv(folder/'metrics.csv').step.tolist() if (folder/'metrics.csv').exists() else [], found


def refuse(request):
    request.send_response(401)
    request.send_header('Content-Length', '0')
    request.end_headers()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['refuses the key', 'never answers'])
def test_server(tmp_path, kind):
    stop = threading.Event()
    answer = refuse if kind == 'refuses the key' else lambda request: stop.wait(30)
    with patch.dict(_WANDB_SECONDS, start=1., log=1., finish=1.), wandb_server(answer):
        steps, found = log_steps(tmp_path)
    stop.set()
    assert (steps, len(found)) == ([1, 2, 3], 1) and found[0].startswith('WandbWriter could not write: ')


@pytest.mark.slow
def test_run_of_the_user_stays_open(tmp_path, monkeypatch):
    import wandb
    monkeypatch.setenv('WANDB_MODE', 'offline')
    own = wandb.init(dir=tmp_path, mode='offline', settings=wandb.Settings(silent=True))
    (tmp_path/'run').mkdir()
    log = MetricLog(tmp_path/'run', compose(ONLY_WANDB))
    log.add(1, {'train_loss': 2.5})
    log.close()
    assert log.writers[-1].run is not own and not log.failed
    own.log({'mine': 1})
    own.finish()


def said(folder, monkeypatch, capsys, **settings):
    "Open and close a log with these environment variables; return what it prints."
    monkeypatch.setenv('NETRC', os.devnull)
    for name in ('WANDB_MODE', 'WANDB_API_KEY', 'WANDB_DISABLED'): monkeypatch.delenv(name, raising=False)
    for name, value in settings.items(): monkeypatch.setenv(name, value)
    MetricLog(folder, compose(ONLY_WANDB)).close()
    return capsys.readouterr().out


def test_offline_run_says_why_and_which_folder_to_sync(tmp_path, monkeypatch, capsys):
    expected = f'W&B is offline: there is no API key; `wandb sync {tmp_path}/wandb/*run-*` uploads it later\n'
    assert said(tmp_path, monkeypatch, capsys) == expected
    assert list(tmp_path.glob('wandb/*run-*'))


def test_wandb_is_disabled_by_its_own_variable(tmp_path, monkeypatch, capsys):
    assert said(tmp_path, monkeypatch, capsys, WANDB_DISABLED='true') == 'W&B is disabled: WANDB_DISABLED=true\n'
    assert not list(tmp_path.glob('wandb/*run-*'))


def test_run_finished_by_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    steps, found = log_steps(tmp_path, spoil=lambda log: log.writers[-1].run.finish())
    assert (steps, len(found)) == ([1, 2, 3], 1)


def test_wandb_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    steps, found = log_steps(tmp_path)
    assert (steps, len(found)) == ([1, 2, 3], 1) and 'pip install wandb' in found[0] and 'wandb sync' not in found[0]


def test_wandb_hangs(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    class Hung:
        def log(self, *_, **__): threading.Event().wait(60)
    def hang(log):
        log.writers[-1].run.finish()
        log.writers[-1].run = Hung()
    with patch.dict(_WANDB_SECONDS, log=0.1, finish=0.1): steps, found = log_steps(tmp_path, spoil=hang)
    assert (steps, len(found)) == ([1, 2, 3], 1) and 'no answer within 0.1 seconds' in found[0]
    assert f'`wandb sync {tmp_path}/wandb/*run-*` may upload it later' in found[0]


def test_full_disk(tmp_path):
    with patch.object(CSVWriter, '_write', side_effect=OSError(28, 'No space left on device')):
        steps, found = log_steps(tmp_path, ONLY_CSV)
    assert (steps, len(found)) == ([], 1)


def test_tensorboard_fails(tmp_path):
    ended = RuntimeError('writer thread has ended')
    with patch('torch.utils.tensorboard.SummaryWriter.add_scalar', side_effect=ended):
        steps, found = log_steps(tmp_path, ['training.logging.wandb=false'])
    assert (steps, len(found)) == ([1, 2, 3], 1)


def test_file_that_is_not_a_log_is_not_overwritten(tmp_path):
    (tmp_path/'metrics.csv').write_text('step\nx\n', encoding='utf-8')
    with pytest.raises(ValueError): CSVWriter(tmp_path, step=1)


def test_tensorboard_and_wandb_get_the_figures_of_the_report(tmp_path):
    words = ['training.max_steps=3', 'training.batch_size=16', f'training.run_dir={tmp_path}/run', 'model.depth=1',
             'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:easy', 'model.text.depth=1',
             'model.memory.mem_reinit_steps=2', 'training.preflight=false', 'training.logging.wandb=true']
    with patch.dict(os.environ, WANDB_MODE='offline'), contextlib.redirect_stdout(io.StringIO()):
        run = fit(compose(words, config_name='quickstart'))
    figures = {'memory/maps', 'report/curves', 'report/ablation', 'report/usage'}
    events = EventAccumulator(str(run.folder/'tensorboard')).Reload()
    assert set(events.Tags()['images']) == figures
    files = run.folder.glob('wandb/offline-run-*/files/media/images/*/*.png')
    assert {f'{f.parent.name}/{f.name.split("_")[0]}' for f in files} == figures
