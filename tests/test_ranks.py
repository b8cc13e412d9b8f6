"""Two processes fit, evaluate, save and resume as one run, and end together when one is lost."""
import contextlib
import json
import os
import pandas as pd
import pytest
import re
import signal
import socket
import subprocess
import sys
import time
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import warnings
from fastai.callback.core import Callback
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'benchmarks'))
from kill50 import SERVER, TIMES, same
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.run import fit
from memory_vlm.training.checkpoint import newest_checkpoint, read_manifest

RANKS = 2
ENOUGH = {} if torch.cuda.device_count() >= RANKS else dict(CUDA_VISIBLE_DEVICES='') # a device for each rank, or none
TINY = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'model.embed_dim=32',
        'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1', 'training.logging.tensorboard=false',
        'training.logging.log_interval=1']
SHORT = [*TINY, 'training.batch_size=8', 'training.max_steps=6', 'training.logging.eval_interval=3',
         'training.logging.save_interval=2', 'training.preflight=false', 'training.precision=fp32',
         'model.contrastive.gather_distributed=true', 'training.data.num_workers=0']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def work(rank, port, said, words):
    os.environ |= ENOUGH | dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR='127.0.0.1',
                                MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with open(f'{said}{rank}', 'a',
              encoding='utf-8') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        try: fit(compose(words, config_name='quickstart'))
        except Exception as e:
            print(f'{type(e).__name__}: {e}', flush=True)
            os._exit(1)


def start(folder, *words):
    "Start both ranks of a fit."
    port = free_port()
    ranks = [SERVER.Process(target=work,
                            args=(r, port, str(folder/'said'), [*words, f'training.run_dir={folder/"run"}']))
                            for r in range(RANKS)]
    for p in ranks: p.start()
    return ranks


def finish(folder, *words):
    folder.mkdir(exist_ok=True)
    ranks = start(folder, *words)
    for p in ranks: p.join()
    said = [(folder/f'said{r}').read_text() for r in range(RANKS)]
    assert [p.exitcode for p in ranks] == [0, 0], said
    return folder/'run', said


def wait_until(there, *processes, seconds=120):
    "Wait until a condition holds."
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end and all(p.is_alive() for p in processes), 'it did not come about'
        time.sleep(0.05)


def saved(run): return (run/'checkpoints').is_dir() and newest_checkpoint(run/'checkpoints')


def rows(run): return len((run/'metrics.csv').read_text().splitlines()) if (run/'metrics.csv').exists() else 0


def table(run): return pd.read_csv(run/'metrics.csv').drop(columns=TIMES)


def gradients(words):
    "Gradients of the second batch in float64: what DDP waited for in vain in the first it tells of then."
    learn, found = make_learner(compose([*SHORT, *words], config_name='quickstart')), {}
    learn.model.double()
    class Stop(Callback):
        order = -5
        def before_step(self):
            found.update({n: p.grad.clone() for n, p in learn.model.named_parameters() if p.grad is not None})
            if learn.train_iter: raise KeyboardInterrupt
        def after_batch(self): self.learn.loss = self.loss.float() # fastai's recorder smooths in float32
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=Stop())
    return found


MEMORIES = [(), ('model.drop_rate=0', 'training.accumulate_grad_batches=2', 'training.batch_size=4'),
            ('model/memory=gated',), ('model/memory=cross_attention',), ('model/memory=learnable_memory',),
            ('model/memory=learnable_memory_protected',), ('model/memory=ema_bank',),
            ('model/memory=jumbo',), ('model.vit_kwargs.attn_gate=headwise',),
            ('model.contrastive.loss_type=siglip',)]


def gradients_of_rank(rank, store, expected):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=RANKS)
    try:
        for words, alone in zip(MEMORIES, expected):
            together = gradients(words)
            assert together.keys() == alone.keys(), words
            largest = max(g.abs().max() for g in alone.values())
            for n, g in alone.items():
                off = float((together[n] - g).abs().max() / largest)
                assert off < 1e-9, f'{words} {n}: gradients differ by {off:.2g} of the largest'
    finally: dist.destroy_process_group()


def test_gradients_of_two_ranks_equal_one_process(tmp_path):
    def whole(words): # the same pairs in one process
        size = 4 if 'training.batch_size=4' in words else 8
        return gradients([*words, f'training.batch_size={RANKS * size}'])
    mp.spawn(gradients_of_rank, (str(tmp_path/'store'), [whole(w) for w in MEMORIES]), nprocs=RANKS)


def features_of_rank(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=RANKS)
    try:
        learn = make_learner(compose([*SHORT, 'model.drop_rate=0.5'], config_name='quickstart'))
        images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8, device=learn.dls.device)
        for training in (False, True):
            x = learn.model.train(training).encode_image(images).detach()
            every = [torch.empty_like(x) for _ in range(RANKS)]
            dist.all_gather(every, x)
            assert torch.equal(*every) != training, f'training={training}'
    finally: dist.destroy_process_group()


def test_ranks_have_the_same_weights_and_their_own_dropout(tmp_path):
    mp.spawn(features_of_rank, (str(tmp_path/'store'),), nprocs=RANKS)


def test_a_run_of_two_ranks_equals_one(tmp_path):
    words = [*SHORT, f'training.data.val_path={tmp_path}/colors', 'training.checkpoint.monitor=zero-shot/f1',
             'training.checkpoint.mode=auto']
    for color in ('red', 'lime', 'blue', 'gold'): # images with classes: their metrics need the images of all ranks
        (tmp_path/'colors'/color).mkdir(parents=True)
        for i in range(8): Image.new('RGB', (16 + i, 16), color).save(tmp_path/'colors'/color/f'{i}.png')
    run, said = finish(tmp_path/'two', *words)
    assert 'on each of 2 ranks' in said[0] and said[1] == ''
    assert pd.read_csv(run/'classes.csv').images.tolist() == [8] * 4 and 'zero-shot/acc@1' in table(run)
    one = fit(compose([*words, 'training.batch_size=16', f'training.run_dir={tmp_path}/one'], config_name='quickstart'))
    pd.testing.assert_frame_equal(table(run), table(one.folder), rtol=1e-3)


def resumed_after_a_kill(folder, *words):
    "Compare a run whose ranks are killed after a checkpoint, and which is resumed, with a straight one; return both."
    straight, _ = finish(folder/'straight', *words)
    stopped = folder/'stopped'
    stopped.mkdir()
    ranks = start(stopped, *words, 'training.resume=auto')
    wait_until(lambda: saved(stopped/'run'), *ranks)
    for p in ranks: p.kill()
    for p in ranks: p.join()
    again, said = finish(stopped, *words, 'training.resume=auto')
    assert 'resumed after step' in said[0]
    same(again, straight)
    return again, straight


def test_two_ranks_resume_bit_identically_with_dropout(tmp_path):
    resumed_after_a_kill(tmp_path, *SHORT, 'model.drop_rate=0.1')


@pytest.mark.parametrize('lost', [1, 0])
def test_lost_rank_ends_the_others_and_the_run_resumes(tmp_path, lost):
    words, left = [*SHORT, 'training.max_steps=60', 'training.resume=auto',
                   'training.logging.save_interval=1'], 1 - lost
    ranks = start(tmp_path, *words)
    wait_until(lambda: saved(tmp_path/'run'), *ranks)
    ranks[lost].kill()
    ranks[left].join(300)
    assert ranks[left].exitcode == 1, f'minutes after its peer was killed, rank {left} still runs'
    last = (tmp_path/f'said{left}').read_text().splitlines()[-1]
    assert re.fullmatch(rf"LostRankError: Another process of this run has ended, so rank {left} stops too after step "
                        rf"\d+; "
                        r"the last good checkpoint is '.*'. training.resume=auto resumes", last), last
    if not lost: return
    run, said = finish(tmp_path, *words)
    assert 'resumed after step' in said[0] and (run/'DONE').exists()
    assert table(run).dropna(subset=['train_loss']).step.tolist() == list(range(1, 61))


def test_resume_requires_the_same_number_of_ranks(tmp_path):
    run, _ = finish(tmp_path, *SHORT)
    (run/'DONE').unlink()
    with pytest.raises(ValueError, match='was written by 2 process.* torchrun --nproc_per_node=2'):
        fit(compose([*SHORT, f'training.run_dir={run}', 'training.resume=auto'], config_name='quickstart'))


def torchrun(folder, *words, script='train.py', options=()):
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port',
                             str(free_port()), *options, str(script),
                             '--config-name=quickstart', *words, f'training.run_dir={folder}'], cwd=ROOT,
                            encoding='utf-8', stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | ENOUGH | dict(OMP_NUM_THREADS='1', PYTHONFAULTHANDLER='1',
                                                           TORCH_ELASTIC_SHUTDOWN_TIMEOUT='240'))


def outcome(process, seconds=120):
    "Return what torchrun printed. Ranks that do not end are aborted, with a warning that says where they are."
    try: return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split():
            os.kill(int(pid), signal.SIGABRT)
        out, err = process.communicate(timeout=300)
        warnings.warn(f'after {seconds} s torchrun still ran:\n{err[-8000:]}')
        return out, err


@pytest.mark.slow
def test_torchrun_fits_stops_resumes_and_reports_errors_once(tmp_path):
    words = [*TINY, 'training.batch_size=8', 'training.epochs=300', 'training.resume=auto',
             'training.data.num_workers=2', 'training.data.prefetch_factor=2']
    process = torchrun(tmp_path/'run', *words)
    wait_until(lambda: rows(tmp_path/'run') > 4)
    process.send_signal(signal.SIGTERM)
    out, err = outcome(process)
    assert 'DataLoader worker' not in err, err
    message = r'Interrupted after (\d+) steps. To resume after step \1, fit again with training.resume=auto'
    said = re.search(message, out)
    assert said, f'no word of an interrupt in:\n{out[-2000:]}\nerrors:\n{err[-6000:]}'
    step = int(said[1])
    assert read_manifest(newest_checkpoint(tmp_path/'run'/'checkpoints'))['step'] == step
    process = torchrun(tmp_path/'run', *words)
    wait_until(lambda: rows(tmp_path/'run') > step + 4)
    process.send_signal(signal.SIGINT)
    out, err = outcome(process)
    assert f'resumed after step {step}' in out, err
    out, err = outcome(torchrun(tmp_path/'other', 'training.epoch=3'))
    assert err.count("did you mean 'training.epochs'?") == 1, err


LOSES_A_RANK = '''
import os
import signal
import sys
from memory_vlm.cli import fit_main
from memory_vlm.training.callbacks import CheckpointCallback
from pathlib import Path
go_on, mark = CheckpointCallback.before_batch, Path(__file__).with_name('killed')
def before_batch(self):
    if os.environ['RANK'] == '1' and self.train_iter == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    go_on(self)
CheckpointCallback.before_batch = before_batch
fit_main()
'''


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', ['false', 'true'])
def test_torchrun_restarts_a_lost_rank_and_the_run_continues(tmp_path, fsdp):
    words = [*SHORT, 'model.drop_rate=0.1', f'training.fsdp={fsdp}', 'training.optimizer=adamw', 'training.resume=auto']
    straight, _ = finish(tmp_path/'straight', *words)
    script = tmp_path/'train.py'
    script.write_text(LOSES_A_RANK)
    done = torchrun(tmp_path/'run', *words, script=script, options=['--max-restarts=2'])
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0 and (tmp_path/'killed').exists(), err
    assert 'resumed after step 2' in out and out.count('Run folder') >= 2, out
    same(tmp_path/'run', straight)


def stubs(folder):
    "Write programs in place of those of Slurm: one node, this machine; `scontrol requeue` leaves a file."
    for name, text in (('srun', 'exec "$@"'),
                       ('scontrol', f'if [ "$1" = requeue ]; then touch "{folder}/requeued"; else echo 127.0.0.1; fi')):
        (folder/name).write_text(f'#!/bin/bash\n{text}\n')
        (folder/name).chmod(0o755)


@pytest.mark.slow
def test_script_for_slurm_saves_before_the_time_limit_and_requeues(tmp_path):
    guide = json.loads((ROOT/'nbs'/'explain'/'command_line.ipynb').read_text(encoding='utf-8'))
    text = ''.join(''.join(c['source']) for c in guide['cells'])
    script = re.search(r'```sh\n(#!/bin/bash.*?)```', text, re.S)[1].replace(':29500', f':{free_port()}')
    stubs(tmp_path)
    words = ['--config-name=quickstart', *TINY, 'training.batch_size=8', 'training.epochs=300',
             'training.data.num_workers=0', f'training.run_dir={tmp_path}/run']
    env = os.environ | ENOUGH | dict(PATH=f'{tmp_path}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
                                     PROCESSES='2', SLURM_NNODES='1', SLURM_JOB_ID='7', SLURM_JOB_NODELIST='here')
    process = subprocess.Popen(['bash', '-c', script, 'train.sbatch', *words], cwd=ROOT, env=env, encoding='utf-8',
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: rows(tmp_path/'run') > 4 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    step = int(re.search(r'Interrupted after (\d+) steps', out)[1])
    assert read_manifest(newest_checkpoint(tmp_path/'run'/'checkpoints'))['step'] == step
    assert (tmp_path/'requeued').exists(), (process.returncode, err)


NOTEBOOK = '''
from accelerate import debug_launcher
from memory_vlm.config import compose
from memory_vlm.run import fit
def train(): fit(compose({words}, config_name='quickstart'))
debug_launcher(train, num_processes=2)
'''


@pytest.mark.slow
def test_a_notebook_launches_ranks(tmp_path):
    code = NOTEBOOK.format(words=[*SHORT, f'training.run_dir={tmp_path}/run'])
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8',
                          env=os.environ | ENOUGH | dict(OMP_NUM_THREADS='1'), timeout=300)
    assert done.returncode == 0 and 'on each of 2 ranks' in done.stdout, done.stderr
    assert (tmp_path/'run'/'DONE').exists()
