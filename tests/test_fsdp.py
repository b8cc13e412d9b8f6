"""Sharded training (`training.fsdp`) equals DDP, resumes bit-identically, and its checkpoints are those of any run."""
import json
import pytest
import sys
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.learner import CONFIG_CHECKS, make_learner
from memory_vlm.training.checkpoint import list_checkpoints, read_manifest, read_state
from memory_vlm.training.run_dir import open_trained
from pathlib import Path
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_ranks import SERVER, SHORT, resumed_after_a_kill

SHARDED = [*SHORT, 'training.fsdp=true', 'training.optimizer=adamw', 'model.drop_rate=0.1']
COMBINATIONS = {
    'attention': ['training.clip_grad=0.05'],
    'gated': ['model/memory=gated', 'training.precision=bf16'],
    'cross_attention': ['model/memory=cross_attention', 'training.grad_checkpointing=true'],
    'learnable_memory': ['model/memory=learnable_memory', 'model.memory.key_bias=-2', 'training.precision=fp16'],
    'protected': ['model/memory=learnable_memory_protected', 'training.freeze=all-memory-last_1',
                  'training.memory_lr_scale=3', 'training.layer_decay=0.7'],
    'ema': ['model/memory=ema_bank', 'model.memory.mem_reinit_steps=2', 'model.memory.mem_reset=all'],
    'maxsim': ['model.memory.readout=maxsim', 'training.optimizer=lion'],
    'parts': ['training.batch_size=4', 'training.accumulate_grad_batches=2', 'model/memory=ema_bank'],
    'plain parts': ['training.batch_size=4', 'training.accumulate_grad_batches=2', 'training.accumulate_mode=plain'],
    'resets': ['model.memory.mem_reinit_steps=2', 'model.memory.mem_dead_threshold=1',
               'model.memory.memory_init=patches', 'model.contrastive.loss_type=siglip'],
    'no memory': ['model.memory.enabled=false', 'training.freeze=text']}
HALF = 'gated', 'learnable_memory'


def fitted(words):
    "Return the losses, gradient norms, evaluations and final weights of a fit."
    norms = []
    class Norms(Callback):
        order = 13 # after the norm is measured
        def before_step(self): norms.append(float(self.learn.grad_norm))
    learn = make_learner(compose(words, config_name='quickstart'))
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule(learn.cfg.training.scheduler, cbs=Norms())
    weights = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    return torch.stack(learn.recorder.losses), torch.tensor(norms), learn.evaluations, weights


def compare(name):
    "Compare a sharded fit with DDP; return the largest differences of loss, norms, weights (absolute) and evaluations."
    words = [*SHARDED, *COMBINATIONS[name]]
    plain, sharded = fitted([*words, 'training.fsdp=false']), fitted(words)
    assert plain[1].shape == sharded[1].shape and plain[1].isfinite().all()
    assert [e['step'] for e in plain[2]] == [e['step'] for e in sharded[2]]
    # biases of keys have no gradient but rounding, which AdamW scales up
    weights = max((w - sharded[3][n]).abs().max().item() for n, w in plain[3].items()
                  if not n.endswith(('qkv.bias', 'in_proj_bias')))
    evaluated = max(abs(a['val_loss'] / b['val_loss'] - 1) for a, b in zip(plain[2], sharded[2]))
    losses, norms = ((a / b - 1).abs().max().item() for a, b in zip(plain[:2], sharded[:2]))
    return losses, norms, weights, evaluated


def read(run):
    "Evaluate the model of a run, and fit it for two steps; return the loss on the validation data."
    learn = make_learner(compose([*SHARDED, f'model.pretrained={run}', 'training.max_steps=2'],
                                 config_name='quickstart'))
    loss = learn.evaluate()['val_loss']
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule('constant')
    assert all(p.isfinite().all() for p in learn.model.parameters())
    return loss


def on_rank(rank, world, folder, f, args):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group('gloo', init_method=f'file://{folder}/store{world}', rank=rank, world_size=world)
    result = f(*args)
    (folder/f'{f.__name__}{world}-{rank}').write_text(json.dumps(result), encoding='utf-8')
    if world > 1: dist.destroy_process_group()


def on_ranks(world, folder, f, *args):
    "Return the results of a function that runs in several processes."
    ranks = [SERVER.Process(target=on_rank, args=(r, world, folder, f, args)) for r in range(world)]
    for p in ranks: p.start()
    for p in ranks: p.join()
    assert [p.exitcode for p in ranks] == [0] * world
    return [json.loads((folder/f'{f.__name__}{world}-{r}').read_text(encoding='utf-8')) for r in range(world)]


def compare_all(names): return {name: compare(name) for name in names}


def check(found):
    for name, (losses, norms, weights, evaluated) in found.items():
        eps = 1e-3 if name in HALF else 1e-6
        # weights and what follows from them differ by the rounding of all steps together
        assert losses <= eps and max(norms, evaluated) <= max(eps, 1e-5) and weights <= 100 * eps, (name, found[name])


def test_sharded_training_equals_ddp(tmp_path):
    one, other = on_ranks(2, tmp_path, compare_all, ['attention', 'protected'])
    assert one == other
    check(one)


@pytest.mark.slow
def test_every_combination_equals_ddp(tmp_path):
    found, _ = on_ranks(2, tmp_path, compare_all, [n for n in COMBINATIONS if n not in ('attention', 'protected')])
    check(found)


@pytest.mark.slow
def test_sharded_run_resumes_bit_identically_and_opens_everywhere(tmp_path):
    _, straight = resumed_after_a_kill(tmp_path, *SHARDED)
    place = list_checkpoints(straight/'checkpoints')[-1]
    held, loss = load_file(place/'model.safetensors'), read_manifest(place)['metrics']['val_loss']
    opened = open_trained(place).model
    assert all(torch.equal(w, held[n]) for n, w in opened.state_dict().items())
    moments = [s['exp_avg'].shape for s in read_state(place)['opt']['state'].values()]
    assert sorted(moments) == sorted(p.shape for p in opened.parameters())
    for world in (1, 4): assert on_ranks(world, tmp_path, read, str(place)) == pytest.approx([loss] * world, abs=1e-6)


def test_what_cannot_be_sharded_is_refused(capfd):
    words = ['training.fsdp=true', 'training.optimizer=lamb', 'training.ema_decay=0.9', 'training.compile=true']
    with pytest.raises(UserError) as e: compose(words, config_name='quickstart', checks=CONFIG_CHECKS)
    assert [line.partition(' ')[0] for line in str(e.value).splitlines()] == [
        'training.optimizer=lamb', 'training.ema_decay=0.9', 'training.compile=true']
    make_learner(compose([*SHORT, 'training.fsdp=true', 'training.optimizer=adamw'], config_name='quickstart'))
    assert 'No effect in a single process: training.fsdp=true' in capfd.readouterr().err
