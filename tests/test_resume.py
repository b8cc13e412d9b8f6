"""Stop a fit in every way there is, and check that the resumed run is bit-identical."""
import multiprocessing
import os
import pandas as pd
import psutil
import pytest
import re
import resource
import signal
import subprocess
import sys
import time
import torch
from fastai.callback.core import Callback
from pathlib import Path
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'benchmarks'))
import kill50
from memory_vlm.cli import fit_task
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.run import fit
from memory_vlm.training import callbacks
from memory_vlm.training.callbacks import CheckpointCallback, ResumeCallback
from memory_vlm.training.checkpoint import (
    best_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_manifest,
    write_checkpoint,
)
from memory_vlm.training.run_dir import is_locked, open_trained, run_lock

SCENES = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
          'training.logging.tensorboard=false', 'training.logging.log_interval=1',
          'model.embed_dim=32', 'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1']
SMALL = [*SCENES, 'training.epochs=3', 'training.max_steps=7', 'training.logging.eval_interval=2',
         'training.logging.save_interval=1', 'model.drop_rate=0.1', 'model.patch_drop_rate=0.3',
         'model.memory.mem_reinit_steps=3', 'model.memory.mem_dead_threshold=1']


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Steps(Callback):
    "What a step was: its number, loss, learning rate, place in the schedule, and whose images it saw."
    order = 65
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training:
            self.seen.append((self.train_iter, self.loss.item(), self.opt.hypers[-1]['lr'], self.pct_train,
                              self.yb[0].tolist()))


def fit_small(folder, *words, checkpoint=None):
    "A fit with a checkpoint after each step, and what it saw."
    cfg = compose([*SMALL, *words], config_name='quickstart')
    learn, steps = make_learner(cfg), Steps()
    learn.add_cbs([steps, CheckpointCallback(folder, cfg.training)])
    with learn.no_logging(): # with its bars, which do not like to begin in the middle
        learn.fit_schedule(cfg.training.scheduler, cbs=ResumeCallback(checkpoint, learn) if checkpoint else None)
    return learn, steps.seen


def history(learn):
    return torch.stack(learn.recorder.losses).tolist(), learn.recorder.lrs, learn.recorder.iters, learn.evaluations


ACCUMULATED = ('training.batch_size=8', 'training.accumulate_grad_batches=2')


@pytest.mark.parametrize('words', [(), ACCUMULATED, ('training.ema_decay=0.9',),
                                   *(pytest.param(w, marks=pytest.mark.slow) for w in (
    ('training.precision=bf16', 'training.scheduler=constant'), ('training.precision=fp16',
                                                                 'model.memory.memory_update=ema'),
    (*ACCUMULATED, 'model/memory=random_registers'),
    ('model/memory=jumbo', 'model.vit_kwargs.attn_gate=headwise')))])
def test_resume_from_any_step_is_bit_identical(tmp_path, monkeypatch, words):
    monkeypatch.setattr(callbacks, 'prune_checkpoints', lambda *_: None)
    straight, steps = fit_small(tmp_path, *words)
    assert len({s[1] for s in steps}) == 7
    weights, kept = {k: v.clone() for k,
                     v in straight.model.state_dict().items()}, list_checkpoints(tmp_path/'checkpoints')
    assert [read_manifest(p)['step'] for p in kept] == [1, 2, 3, 4, 5, 6, 7]
    for i, checkpoint in enumerate(kept):
        workers = (f'training.data.num_workers={2 * (i % 2)}', 'training.data.prefetch_factor=2')
        learn, seen = fit_small(tmp_path/f'{i}', *words, *workers, checkpoint=checkpoint)
        assert seen == steps[i + 1:]
        assert history(learn) == history(straight)
        assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())


def test_save_top_k_is_kept_across_resume(tmp_path, monkeypatch):
    words, most = ['training.checkpoint.save_top_k=2', 'training.checkpoint.monitor=t2i/R@1',
                   'training.checkpoint.mode=max'], []
    def prune(folder, *args): # called when there are most
        most.append(len(list_checkpoints(folder)))
        prune_checkpoints(folder, *args)
    monkeypatch.setattr(callbacks, 'prune_checkpoints', prune)
    def kept(folder):
        return [(read_manifest(p)['step'], read_manifest(p)['metrics']) for p in list_checkpoints(folder/'checkpoints')]
    straight, _ = fit_small(tmp_path/'straight', *words)
    best = {read_manifest(p)['step'] for p in best_checkpoints(tmp_path/'straight'/'checkpoints', 't2i/R@1')[:2]}
    assert {step for step, _ in kept(tmp_path/'straight')} == {*best, 7} and max(most) <= 4
    class Stop(Callback):
        order = 99
        def after_batch(self):
            if self.train_iter == 5: raise KeyboardInterrupt
    cfg = compose([*SMALL, *words], config_name='quickstart')
    learn = make_learner(cfg).add_cbs([CheckpointCallback(tmp_path/'stopped', cfg.training), Stop()])
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule(cfg.training.scheduler)
    fit_small(tmp_path/'stopped', *words, checkpoint=newest_checkpoint(tmp_path/'stopped'/'checkpoints'))
    assert kept(tmp_path/'stopped') == kept(tmp_path/'straight') and max(most) <= 4


class StopAfter(Callback):
    "Ctrl-C after a step."
    order = 96 # when all others are done with it
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.train_iter == self.step: self.learn.interrupts.caught = signal.SIGINT


def fit_run(folder, *words, stop=None):
    "A whole run of three steps, or one that is interrupted."
    def make(cfg, **kwargs): return make_learner(cfg, **kwargs).add_cbs([StopAfter(stop)] if stop else [])
    words = [*SMALL, 'training.preflight=false', 'training.max_steps=3', 'training.resume=auto',
             f'training.run_dir={folder}', *words]
    with mock.patch('memory_vlm.run.make_learner', make): return fit(compose(words, config_name='quickstart'))


def test_runs_that_share_a_checkpoint_folder_do_not_interfere(tmp_path, capsys):
    words = [f'training.checkpoint.dirpath={tmp_path}/kept', 'training.checkpoint.save_top_k=0']
    fit_run(tmp_path/'a', *words, stop=2)
    other = fit_run(tmp_path/'b', *words)
    capsys.readouterr()
    run = fit_run(tmp_path/'a', *words)
    assert 'resumed after step 2' in capsys.readouterr().out
    for r in (run, other): assert open_trained(r.folder).place.parent == tmp_path/'kept'/tmp_path.name/r.folder.name


def test_resumed_run_keeps_its_precision(tmp_path, capsys):
    def on_a_device_with(precision, **kwargs):
        with mock.patch('memory_vlm.learner.choose_precision', lambda *_: precision): return fit_run(tmp_path/'run',
                'training.precision=auto', **kwargs)
    on_a_device_with('bf16', stop=1)
    run = on_a_device_with('fp32')
    assert run.learn.mixed_precision.dtype == torch.bfloat16 and capsys.readouterr().out.count('pairs in bf16 on') == 2


def extend_run(folder, steps, *words, **kwargs):
    "Extend a finished run of `fit_run`."
    return fit_run(folder, f'training.max_steps={steps}', *words, f'training.resume={folder}', 'training.run_dir=null',
                   **kwargs)


@pytest.mark.parametrize('words', [('training.epochs=3',), ('training.batch_size=60', 'training.epochs=2',
                                                           'training.ema_decay=0.9')])
def test_extended_run_equals_a_long_one_if_the_learning_rate_is_constant(tmp_path, words):
    "From the middle of an epoch, and from its end: scenes:tiny has 242 images."
    words = [*words, 'training.scheduler=constant', 'training.scheduler_kwargs.warmup_epochs=0',
             'training.logging.log_interval=2', 'model.memory.mem_reinit_steps=0']
    straight = fit_run(tmp_path/'straight', *words, 'training.max_steps=6')
    fit_run(tmp_path/'run', *words, 'training.max_steps=4')
    extended = extend_run(tmp_path/'run', 6, *words)
    assert torch.stack(extended.learn.recorder.losses).tolist() == torch.stack(straight.learn.recorder.losses).tolist()
    weights = straight.learn.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in extended.learn.model.state_dict().items())
    assert extended.metrics == straight.metrics
    columns = ['step', 'train_loss', 'val_loss', 'lr']
    tables = [pd.read_csv(r.folder/'metrics.csv')[columns].drop_duplicates() for r in (straight, extended)]
    pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in tables))


def test_extension_keeps_the_run_and_can_be_interrupted(tmp_path, capsys):
    folder, words = tmp_path/'run', ['training.checkpoint.save_top_k=1', 'training.checkpoint.monitor=t2i/R@1']
    fit_run(folder, *words)
    extend_run(folder, 6, *words, stop=5)
    assert not (folder/'DONE').exists() and pd.read_csv(folder/'metrics.csv').step.max() == 5
    with pytest.raises(ValueError, match='training.max_steps=6 there and 3 here'): fit_run(folder, *words)
    capsys.readouterr()
    run = fit_run(folder, *words, 'training.max_steps=6')
    said = capsys.readouterr().out
    assert 'resumed after step 5' in said and 'Extended' not in said and (folder/'DONE').exists()
    table = pd.read_csv(folder/'metrics.csv')
    assert table.step.is_monotonic_increasing and table.train_loss.notna().sum() == 6
    saved = table['t2i/R@1'].dropna().max()
    best = read_manifest(best_checkpoints(folder/'checkpoints', 't2i/R@1')[0])['metrics']['t2i/R@1']
    assert best == pytest.approx(saved, abs=1e-5)
    assert read_manifest(list_checkpoints(folder/'checkpoints')[-1])['step'] == 6
    assert len(run.learn.evaluations) == table.val_loss.notna().sum()


def test_killed_extension_starts_again(tmp_path, monkeypatch):
    "Between the new config.yaml and the removal of DONE, and with a checkpoint that is damaged."
    folder = tmp_path/'run'
    fit_run(folder, kept := 'training.checkpoint.save_top_k=3')
    with mock.patch.object(Path, 'unlink', side_effect=SystemExit), pytest.raises(SystemExit):
        extend_run(folder, 4, kept)
    assert (folder/'DONE').exists() and 'max_steps: 4' in (folder/'config.yaml').read_text()
    extend_run(folder, 4, kept)
    assert (folder/'DONE').exists() and 'max_steps: 3' in (folder/'config-until-step-3.yaml').read_text()
    before = (folder/'config.yaml').read_text(), (folder/'metrics.csv').read_text()
    with (list_checkpoints(folder/'checkpoints')[-1]/'state.pt').open('ab') as f: f.write(b'damage')
    with pytest.raises(ValueError, match='the run ended at step 4, and its newest intact checkpoint is of step [123],'):
        extend_run(folder, 5, kept)
    for path in list_checkpoints(folder/'checkpoints'):
        with (path/'state.pt').open('ab') as f: f.write(b'damage')
    with pytest.raises(ValueError, match='ended at step 4, and no checkpoint is intact'): extend_run(folder, 5, kept)
    after = (folder/'config.yaml').read_text(), (folder/'metrics.csv').read_text()
    assert (folder/'DONE').exists() and before == after


COLUMNS = '''step epoch train_loss val_loss lr grad_norm temperature samples_per_second data_wait i2t/R@1 i2t/R@5
i2t/R@10 t2i/R@1 t2i/R@5 t2i/R@10 memory/least_usage memory/resets memory/reset_tokens memory/reset_usage'''


def test_run_records_its_environment(tmp_path):
    run = fit(compose([*SMALL, 'training.preflight=false', f'training.run_dir={tmp_path}/run',
                       'model.memory.mem_reset=all', 'training.logging.tensorboard=true'], config_name='quickstart'))
    table = pd.read_csv(run.folder/'metrics.csv')
    assert set(table) == set(COLUMNS.split()) and table.notna().any().all()
    assert table.data_wait.dropna().between(0, 1).all() and table.temperature.dropna().between(0.01, 1).all()
    events = EventAccumulator(str(next(run.folder.rglob('events.out.tfevents.*')).parent)).Reload()
    tags = {c: f'val/{c}' if c == 'val_loss' or '/R@' in c else c for c in COLUMNS.split()}
    texts = {'step', 'epoch', 'memory/reset_tokens', 'memory/reset_usage'}
    usage = {f'memory/usage/{m}' for m in range(8)}
    assert {t for c, t in tags.items() if c not in texts} | usage <= set(events.Tags()['scalars'])
    for name in ('train_loss', 'val_loss', 'memory/resets'):
        written, logged = table.dropna(subset=[name]), events.Scalars(tags[name])
        assert [e.step for e in logged] == written.step.tolist()
        assert [e.value for e in logged] == pytest.approx(written[name].tolist(), rel=1e-5)
    least = min(events.Scalars(t)[0].value for t in usage)
    assert least == pytest.approx(table['memory/least_usage'].dropna().iloc[0], rel=1e-5)


@pytest.mark.slow
def test_killed_fits_resume_bit_identically(tmp_path):
    seen = kill50.kill_often(tmp_path, kills=2)
    assert seen['kills'] == 2


def workers_of_a_fit(said, method):
    "A fit that is to be killed; it says which processes load for it."
    multiprocessing.set_start_method(method, force=True)
    cfg = compose([*SCENES, 'training.data.num_workers=2', 'training.data.prefetch_factor=2'], config_name='quickstart')
    loader = iter(make_learner(cfg).dls.train)
    next(loader)
    said.send([p.pid for p in multiprocessing.active_children()])
    time.sleep(600)


def alive(pid): return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize('method', ['fork', 'forkserver']) # how Python starts them before 3.14, and since
def test_workers_of_a_killed_fit_end(method):
    here, there = multiprocessing.Pipe()
    fit = multiprocessing.get_context('spawn').Process(target=workers_of_a_fit, args=(there, method))
    fit.start()
    try:
        assert here.poll(300) # the machine may be busy
        pids = here.recv()
        assert len(pids) == 2 and all(map(alive, pids))
        assert all(os.getpgid(p) == p for p in pids) # a signal to the group of the fit does not reach them
    finally: fit.kill()
    end = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < end: time.sleep(0.1)
    assert not any(map(alive, pids))


def command(folder, *words):
    return [sys.executable, 'train.py', '--config-name=quickstart', *SCENES, f'training.run_dir={folder}', *words]


def stop_train(folder, number, *words):
    "Start train.py, send it and all that belong to it a signal after a few steps, as a terminal does, and wait."
    process = subprocess.Popen(command(folder, *words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding='utf-8', start_new_session=True)
    table = folder/'metrics.csv'
    rows = lambda: len(table.read_text().splitlines()) if table.exists() else 0
    before = rows()
    for _ in range(600):
        if rows() > before + 3: break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_saves_and_the_run_resumes(tmp_path, workers):
    words = ['training.epochs=300', 'training.resume=auto', f'training.data.num_workers={workers}',
             'training.data.prefetch_factor=2']
    status, out, err = stop_train(tmp_path/'run', signal.SIGTERM, *words)
    assert status == 143, err
    assert 'Traceback' not in err
    message = r'Interrupted after (\d+) steps. To resume after step \1, fit again with training.resume=auto'
    step = int(re.search(message, out)[1])
    assert read_manifest(newest_checkpoint(tmp_path/'run'/'checkpoints'))['step'] == step
    status, out, err = stop_train(tmp_path/'run', signal.SIGINT, *words)
    assert status == 130 and f'resumed after step {step}' in out, err
    steps = pd.read_csv(tmp_path/'run'/'metrics.csv').dropna(subset=['train_loss']).step.tolist()
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= step


def test_nan_loss_ends_the_run_in_one_line(tmp_path):
    done = subprocess.run(command(tmp_path/'run', 'training.learning_rate=1e30', 'training.clip_grad=0',
                                  'training.scheduler=constant',
                                  'training.scheduler_kwargs={warmup_epochs: 0}', 'training.logging.save_interval=1'),
                          cwd=ROOT, capture_output=True, encoding='utf-8')
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert re.search(r"is nan at step \d+, .* the last good checkpoint is '.*'", done.stderr.splitlines()[-1])


class FullFrom(Callback):
    "From one step to another no file may grow over 4 KB, as on a full disk."
    order = 85
    def __init__(self, first, last): self.first, self.last = first, last
    def after_batch(self):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if self.train_iter == self.first: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit))
        if self.train_iter == self.last: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_full_disk_warns_and_keeps_the_previous_checkpoint(tmp_path):
    cfg = compose([*SMALL, 'training.data.num_workers=0'], config_name='quickstart')
    learn = make_learner(cfg).add_cbs([CheckpointCallback(tmp_path, cfg.training), FullFrom(3, 6)])
    kept = {}
    class Look(Callback):
        order = 97
        def after_batch(self):
            kept[self.train_iter] = [read_manifest(p)['step'] for p in list_checkpoints(tmp_path/'checkpoints')]
    learn.add_cb(Look())
    with pytest.warns(UserWarning,
                      match='No checkpoint at step 3: .*; the last one '
                            'is') as warned, learn.no_bar(), learn.no_logging():
        learn.fit_schedule(cfg.training.scheduler)
    assert len([w for w in warned if 'No checkpoint' in str(w.message)]) == 1
    assert kept[2][-1] == kept[3][-1] == kept[5][-1] == 2 and kept[6][-1] == 6
    assert read_manifest(newest_checkpoint(tmp_path/'checkpoints'))['step'] == 7
    assert not [p for p in (tmp_path/'checkpoints').iterdir() if p.name.startswith('.')]


def test_run_without_final_weights_is_not_done(tmp_path, monkeypatch, capsys):
    def full(folder, model, state, step, *args):
        if step == 3: raise OSError('No space left on device')
        return write_checkpoint(folder, model, state, step, *args)
    monkeypatch.setattr(callbacks, 'write_checkpoint', full)
    with pytest.warns(UserWarning, match='No checkpoint at step 3'): run = fit_run(tmp_path/'run')
    assert not run.saved and not (run.folder/'DONE').exists()
    assert (f'The weights of the last step, 3, could not be saved. To resume after step 2, fit again with '
            f'training.resume=auto (run folder: {run.folder})') in capsys.readouterr().out
    with mock.patch('memory_vlm.run.fit', lambda cfg: run), pytest.raises(SystemExit) as end: fit_task(run.learn.cfg)
    assert end.value.code == 1
    monkeypatch.undo()
    again = fit_run(tmp_path/'run')
    assert again.saved and (run.folder/'DONE').exists()
    assert fit_run(tmp_path/'unsaved', 'training.checkpoint.save_top_k=0', 'training.checkpoint.save_last=false').saved


def test_resume_reads_the_checkpoint_from_disk(tmp_path, capsys):
    words = ['training.max_steps=5', 'training.checkpoint.save_top_k=1', 'training.checkpoint.save_last=false']
    run = fit_run(tmp_path/'run', *words, stop=3) # evaluated after 2
    assert 'Interrupted after 3 steps. To resume after step 2' in capsys.readouterr().out
    assert [read_manifest(p)['step'] for p in list_checkpoints(run.folder/'checkpoints')] == [2]


def test_unwritable_folder_warns(tmp_path):
    (tmp_path/'checkpoints').write_text('in the way')
    with pytest.warns(UserWarning, match='No checkpoint at step 1: .*; there is none before it') as warned:
        learn, steps = fit_small(tmp_path)
    assert len(steps) == 7 and len([w for w in warned if 'No checkpoint' in str(w.message)]) == 1


def test_save_minutes(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(CheckpointCallback, 'save', lambda self,
                        epoch: (saved.append((epoch, self.train_iter)), setattr(self, 'since', time.monotonic())))
    fit_small(tmp_path, 'training.logging.save_interval=1000', 'training.logging.save_minutes=1e-9',
              'training.max_steps=3')
    assert [s for _, s in saved] == [1, 2, 3]
    saved.clear()
    fit_small(tmp_path, 'training.logging.save_interval=1000', 'training.logging.save_minutes=0',
              'training.max_steps=3')
    assert [s for _, s in saved] == [3]


def test_a_run_belongs_to_one_process(tmp_path):
    code = (f"import sys, time; from memory_vlm.training.run_dir import run_lock\nwith run_lock({str(tmp_path)!r}): "
            f"print('mine', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, encoding='utf-8')
    try:
        assert other.stdout.readline() == 'mine\n'
        assert is_locked(tmp_path)
        with pytest.raises(ValueError, match='is being trained by another process'), run_lock(tmp_path): pass
        (tmp_path/'config.yaml').touch()
        with pytest.raises(ValueError,
                           match='is being trained by another '
                                 'process'), mock.patch('memory_vlm.training.run_dir.config_differences',
                                                        return_value={}):
            fit_run(tmp_path)
    finally: other.kill()
    other.wait()
    assert not is_locked(tmp_path)


@pytest.mark.slow
def test_interrupted_cell_resumes_when_rerun(tmp_path):
    from jupyter_client.manager import start_new_kernel
    kernel, client = start_new_kernel(cwd=str(tmp_path))
    words = [*SCENES, 'training.epochs=300', 'training.resume=auto', 'training.logging.name=cell']
    cell = (f"from memory_vlm.config import compose\nfrom memory_vlm.run import fit\nrun = fit(compose({words}, "
            f"config_name='quickstart'))")
    def interrupted(rows): # Run the cell, interrupt it when the run has so many rows, and give what it said
        said = []
        client.execute(cell)
        for _ in range(600):
            if any(len(p.read_text().splitlines()) > rows for p in tmp_path.glob('runs/cell/*/metrics.csv')): break
            time.sleep(0.2)
        kernel.interrupt_kernel()
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message['msg_type'] == 'stream': said.append(message['content']['text'])
            assert message['msg_type'] != 'error', message['content']
            if message['msg_type'] == 'status' and message['content']['execution_state'] == 'idle' and said:
                return ''.join(said)
    try:
        first, (run,) = interrupted(5), list(tmp_path.glob('runs/cell/*'))
        step = int(re.search(r'Interrupted after (\d+) steps', first)[1])
        assert f'resumed after step {step}' in interrupted(step + 5)
        assert list(tmp_path.glob('runs/cell/*')) == [run]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
