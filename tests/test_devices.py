"""Devices besides the CPU and CUDA, such as MPS: nothing needs float64 there, and tensors of two devices never meet.

No such device is here, so torch's `meta` stands for it: shapes, dtypes and devices are those of a real one, copies to
the CPU are zeros. Autocast, which knows no `meta`, is off."""
import pytest
import torch
from contextlib import nullcontext
from memory_vlm import ablation, report
from memory_vlm.attention import capture
from memory_vlm.clip import make_model
from memory_vlm.config import compose
from memory_vlm.core import _fork_random
from memory_vlm.interp.attribution import attribute
from memory_vlm.interp.test_time_registers import patch_norms
from memory_vlm.learner import make_learner
from memory_vlm.loss import LOSSES
from memory_vlm.training import checkpoint
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device('meta')
MEMORY = sorted(p.stem for p in (Path(__file__).parents[1]/'configs/model/memory').glob('*.yaml'))
SMALL = ['model.image_size=32', 'model.patch_size=16', 'model.embed_dim=32', 'model.num_heads=2',
         'model.text.embed_dim=32', 'training.optimizer=adamw', 'training.optimizer_kwargs.fused=false']


class AnotherDevice(TorchDispatchMode):
    "Let `meta` behave as a device without float64."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        here = any(t.is_meta for t in tensors)
        if here and name == '_local_scalar_dense': return 1.
        if here and name == '_to_copy' and str(kwargs.get('device')) == 'cpu':
            return torch.zeros(args[0].shape, dtype=kwargs.get('dtype') or args[0].dtype)
        if here and name not in ('_to_copy', 'copy_', 'index') and any(not t.is_meta and t.dim() for t in tensors):
            raise RuntimeError(f'{func} of two devices: {[(t.device.type, tuple(t.shape)) for t in tensors]}')
        found = func(*args, **kwargs)
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor) and t.is_meta and t.dtype == torch.float64:
                raise TypeError(f'{func}: float64')
        return found


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device_type=None: False)
    with AnotherDevice(): yield META


@pytest.mark.parametrize('memory', MEMORY)
def test_step_and_capture(memory, device):
    model = make_model(compose([*SMALL, f'model/memory={memory}'], config_name='quickstart').model).to(device)
    images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device=device)
    ids = torch.ones(4, 9, dtype=torch.long, device=device)
    LOSSES['clip'](*model(images, ids)).backward()
    assert all(p.grad.device == device for p in model.parameters() if p.grad is not None)
    with capture(model, values=True, norms=True, states=True) as maps: model.encode_image(images)
    assert maps.heatmap(layer=-1, token='cls').shape == (4, 2, 2)
    assert patch_norms(model, images).shape[-1] == 4
    if memory in ('registers', 'default'): assert len(attribute(model, images, ids)) == 4


@pytest.mark.slow
def test_fit_report_and_ablation(device):
    cfg = compose([*SMALL, 'training.max_steps=2', 'training.batch_size=8'], config_name='quickstart')
    learn = make_learner(cfg, device=device)
    learn.fit_schedule(learn.cfg.training.scheduler)
    assert learn.evaluation['step'] == 2
    assert len(report.memory_report(learn, num_images=16).rows)
    assert 'mask' in str(ablation.ablate(learn, num_images=16))


def test_checkpoints_keep_the_generator_of_any_accelerator(monkeypatch):
    class Module: # as torch.mps
        state = torch.arange(3, dtype=torch.uint8)
        def get_rng_state(self, device='mps'): return self.state.clone()
        def set_rng_state(self, state, device='mps'): self.state = state.clone()
    module = Module()
    monkeypatch.setattr(checkpoint, '_accelerator', lambda: 'mps')
    monkeypatch.setattr(torch, 'get_device_module', lambda device=None: module)
    kept = checkpoint._random_state()
    module.state += 1
    checkpoint._set_random_state(kept)
    assert module.state.tolist() == [0, 1, 2]
    monkeypatch.setattr(checkpoint, '_accelerator', lambda: None)
    checkpoint._set_random_state(kept) # on a machine without it
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices, device_type: (devices, device_type))
    mps = torch.device('mps')
    assert _fork_random(mps) == ([mps], 'mps') and _fork_random(META) == ([], 'cuda')
