"""Runs with and without memory: equal weights, batches and random numbers in everything both have."""
import pytest
import timm
import torch
from itertools import product
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.learner import make_learner
from memory_vlm.memory import INITS, UPDATES, check_memory
from memory_vlm.tokens import POSITIONS
from memory_vlm.vision import tiny_vit
from omegaconf import OmegaConf
from safetensors.torch import save_file

DATA = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
        'training.data.num_workers=0', 'training.seed=3']
MEMORY = ['model/memory=default', 'model/memory=registers', 'model/memory=gated', 'model/memory=cross_attention',
          'model/memory=learnable_memory', 'model/memory=learnable_memory_protected', 'model/memory=ema_bank',
          'model/memory=jumbo', 'model/memory=random_registers', 'model.memory.memory_init=patches',
          'model.memory.num_memory_tokens=9']


def start(*words):
    "Return the weights of a run at its start, its first batches, and the next random number."
    learn = make_learner(compose(['model=tiny', *DATA, *words]), device=torch.device('cpu'))
    draw, batches = torch.rand(()).item(), []
    for batch in learn.dls.train:
        batches.append(batch)
        if len(batches) == 3: break
    return learn.model.state_dict(), batches, draw


@pytest.fixture(scope='module')
def towers(tmp_path_factory):
    "A vision tower of timm without a head: the text tower and the head are randomly initialized."
    path = tmp_path_factory.mktemp('towers')/'test.safetensors'
    torch.manual_seed(0)
    save_file(timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=12).state_dict(), path)
    return f'timm:vit_tiny_patch16_224/{path}'


def assert_equal_start(mine, twin):
    (weights, batches, draw), (twin_weights, twin_batches, twin_draw) = mine, twin
    assert not twin_weights.keys() - weights.keys()
    assert [k for k, w in twin_weights.items() if not torch.equal(w, weights[k])] == []
    for batch, other in zip(batches, twin_batches): assert all(map(torch.equal, batch, other))
    assert draw == twin_draw


def test_runs_with_and_without_memory_start_alike():
    twin = start('model/memory=off')
    for words in MEMORY: assert_equal_start(start(words), twin)


def test_runs_on_a_pretrained_trunk_start_alike(towers):
    pretrained = [f'model.pretrained={towers}', 'model.image_size=32', 'model.proj_dim=48']
    def start_here(memory): return start('model=base', *pretrained, 'training.batch_size=4', memory)
    twin = start_here('model/memory=off')
    for preset in ('registers', 'learnable_memory_protected'):
        assert_equal_start(start_here(f'model/memory={preset}'), twin)


@pytest.mark.slow
def test_every_mechanism_starts_from_the_weights_of_its_twin():
    base = compose(['model=tiny', 'model.text.vocab_size=100', 'model.text.depth=1', 'model.depth=1',
                    'model.memory.num_memory_tokens=3']).model
    def seeded(**memory):
        torch.manual_seed(1)
        return MemoryCLIP.from_config(OmegaConf.merge(base, dict(memory=memory))).state_dict(), torch.rand(()).item()
    twin, draw = seeded(enabled=False)
    count = 0
    for update, position, init, dim in product(UPDATES, POSITIONS, INITS, (16, base.embed_dim)):
        memory = dict(memory_update=update, memory_position=position, memory_init=init, dim=dim)
        try: check_memory(OmegaConf.merge(base, dict(memory=memory)))
        except UserError: continue
        weights, mine = seeded(**memory)
        assert [k for k, w in twin.items() if not torch.equal(w, weights[k])] == [] and mine == draw, memory
        count += 1
    assert count == 143


def test_resetting_memory_draws_the_same_numbers_with_any_memory():
    draws = set()
    for kw in ({}, dict(num_memory_tokens=3), dict(num_memory_tokens=4, memory_position='kv', memory_update='static')):
        vit = tiny_vit(**kw)
        torch.manual_seed(1)
        old = [m.tokens.clone() for m in vit.memory_tokens()]
        vit.reset_memory()
        new = [m.tokens.clone() for m in vit.memory_tokens()]
        vit.reset_memory()
        for a, b, c in zip(old, new, vit.memory_tokens()):
            assert not torch.equal(a, b) and not torch.equal(b, c.tokens)
        draws.add(torch.rand(()).item())
    assert len(draws) == 1
